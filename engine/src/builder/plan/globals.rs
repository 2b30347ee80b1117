//! The arguments above the first FROM, and those that are always there. FROM sees nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::scope::{self, NO_RULES};
use super::{ENVIRONMENT_BYTES_MAX, Options, Platform};
use crate::builder::dockerfile::{Command, Dockerfile};
use crate::builder::source::{Complaint, Word};

/// Arguments that a build may be given without declaring them. They reach commands, and no key of the cache.
pub(super) const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// The global arguments and their values.
#[derive(Clone, Debug)]
pub struct Globals {
    /// Values; those of declared arguments and of the platforms.
    values: BTreeMap<String, String>,
    /// Declared arguments that have no value.
    declared: BTreeSet<String>,
    escape: char,
}

/// A word of FROM with its variables resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What it comes to.
    pub text: String,
    /// Variables in it that have a value.
    pub matched: BTreeSet<String>,
    /// Variables in it that have none.
    pub unmatched: BTreeSet<String>,
}

impl Globals {
    /// Reads what stands above the first FROM, with the values that the build was given.
    ///
    /// # Errors
    /// A default that cannot be expanded.
    pub fn read(dockerfile: &Dockerfile, options: &Options) -> Result<Globals, Complaint> {
        let escape = dockerfile.directives.escape;
        let mut globals = Globals { values: platform_values(options), declared: BTreeSet::new(), escape };
        let mut bytes = 0;
        for instruction in &dockerfile.instructions {
            let Command::Arg(arguments) = &instruction.command else { break };
            for argument in arguments {
                let name = &argument.name.value;
                match (options.build_args.get(name), &argument.default) {
                    (Some(value), _) => {
                        globals.values.insert(name.clone(), value.clone());
                    }
                    (None, Some(default)) => {
                        let value = globals.resolve(default)?.text;
                        bytes += value.len();
                        if bytes > ENVIRONMENT_BYTES_MAX {
                            let message = format!("the arguments have more than {ENVIRONMENT_BYTES_MAX} bytes");
                            return Err(Complaint::new(default.span, message));
                        }
                        globals.values.insert(name.clone(), value);
                    }
                    (None, None) => {
                        globals.declared.insert(name.clone());
                    }
                }
            }
        }
        Ok(globals)
    }

    /// The value of an argument.
    pub fn get(&self, name: &str) -> Option<&String> {
        self.values.get(name)
    }

    /// Whether it was declared, with a value or without.
    pub(super) fn is_declared(&self, name: &str) -> bool {
        self.values.contains_key(name) || self.declared.contains(name)
    }

    /// All names, to suggest one of them.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().chain(&self.declared).map(String::as_str)
    }

    /// Resolves the variables of a word.
    ///
    /// # Errors
    /// A word that cannot be expanded.
    pub fn resolve(&self, word: &Word) -> Result<Resolved, Complaint> {
        let lookup = |name: &str| self.values.get(name).map(String::as_str);
        let expanded = scope::expand_word(word, self.escape, NO_RULES, &lookup)?;
        Ok(Resolved { text: expanded.text, matched: expanded.matched, unmatched: expanded.unmatched })
    }
}

/// What is defined for every build.
fn platform_values(options: &Options) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut add = |prefix: &str, platform: &Platform| {
        values.insert(format!("{prefix}PLATFORM"), platform.to_string());
        values.insert(format!("{prefix}OS"), platform.os.clone());
        values.insert(format!("{prefix}OSVERSION"), String::new());
        values.insert(format!("{prefix}ARCH"), platform.architecture.clone());
        values.insert(format!("{prefix}VARIANT"), platform.variant.clone().unwrap_or_default());
    };
    add("TARGET", &options.platform);
    add("BUILD", &options.build_platform);
    values.insert("TARGETSTAGE".to_owned(), options.target.clone().unwrap_or_else(|| "default".to_owned()));
    for (name, value) in &mut values {
        if let Some(given) = options.build_args.get(name) {
            value.clone_from(given);
        }
    }
    values
}
