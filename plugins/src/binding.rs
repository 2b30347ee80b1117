//! `policies.toml`: as written, and as meant. Unknown keys are errors; defaults and bounds stand here and nowhere else.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::engine::MEMORY_BYTES_MAX;
use crate::verdict::{Mode, OnFailure};

/// Largest `policies.toml`, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most policies in one file.
const POLICIES_MAX: usize = 64;
/// Longest name of a policy, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Most fuel that a binding may give.
const FUEL_MAX: u64 = 10_000_000_000;
/// Longest deadline that a binding may give, in milliseconds.
const DEADLINE_MS_MAX: u64 = 10_000;
/// Least memory that a binding may give, in bytes: one page of WebAssembly.
const MEMORY_BYTES_MIN: u64 = 64 * 1024;

/// A question that policies answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Hook {
    /// May this job run, and as what?
    Admission,
    /// May this image be built, and as what?
    Build,
    /// Are these settings right?
    Settings,
}

impl Hook {
    /// As in the contract and in `policies.toml`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Hook::Admission => "admission",
            Hook::Build => "build",
            Hook::Settings => "settings",
        }
    }
}

/// What bounds each call of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Limits {
    /// Steps of WebAssembly: the same for the same question.
    pub(crate) fuel: u64,
    /// Time, for what fuel does not see.
    pub(crate) deadline_ms: u64,
    /// All linear memories together.
    pub(crate) memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { fuel: 50_000_000, deadline_ms: 1000, memory_bytes: 64 << 20 }
    }
}

/// One policy of the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Binding {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    pub(crate) hooks: Option<Vec<Hook>>,
    pub(crate) mode: Mode,
    pub(crate) on_failure: OnFailure,
    pub(crate) limits: Limits,
    /// A JSON object; `None` where a policy is looked at by itself and its settings are not known.
    pub(crate) settings: Option<String>,
}

impl Binding {
    /// Binds a file by itself, under its own name, its settings left open.
    pub(crate) fn of_file(file: &Path, hooks: Option<Vec<Hook>>) -> Binding {
        Binding {
            name: file.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            file: file.to_owned(),
            hooks,
            mode: Mode::default(),
            on_failure: OnFailure::default(),
            limits: Limits::default(),
            settings: None,
        }
    }
}

/// Why `policies.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BindingError {
    /// It cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not TOML, or has keys or values that are not known.
    #[error("{file} is not a list of policies")]
    Parse {
        /// The file.
        file: PathBuf,
        /// Where and what, with the line.
        source: Box<toml::de::Error>,
    },
    /// A value is out of bounds.
    #[error("{file}: {problem}")]
    Value {
        /// The file.
        file: PathBuf,
        /// The policy, the key and its bound.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFile {
    #[serde(default)]
    policy: Vec<WrittenPolicy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenPolicy {
    name: String,
    file: PathBuf,
    hooks: Option<Vec<Hook>>,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    on_failure: OnFailure,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    settings: toml::Table,
}

/// Reads the bindings of a file, in order. Paths in it are meant from its folder.
///
/// # Errors
/// The first thing that is wrong with it, by file and key.
pub(crate) fn read(file: &Path) -> Result<Vec<Binding>, BindingError> {
    let failed = |source| BindingError::Read { file: file.to_owned(), source };
    let mut text = String::new();
    File::open(file).and_then(|opened| opened.take(FILE_BYTES_MAX).read_to_string(&mut text)).map_err(failed)?;
    parse(file, &text)
}

fn parse(file: &Path, text: &str) -> Result<Vec<Binding>, BindingError> {
    let written: WrittenFile = toml::from_str(text)
        .map_err(|source| BindingError::Parse { file: file.to_owned(), source: Box::new(source) })?;
    let wrong = |problem| BindingError::Value { file: file.to_owned(), problem };
    if written.policy.len() > POLICIES_MAX {
        return Err(wrong(format!("{} policies, at most {POLICIES_MAX}", written.policy.len())));
    }
    let mut names = BTreeSet::new();
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut bindings = Vec::new();
    for policy in written.policy {
        let binding = policy.meant(folder).map_err(wrong)?;
        if !names.insert(binding.name.clone()) {
            return Err(wrong(format!("two policies are named `{}`", binding.name)));
        }
        bindings.push(binding);
    }
    Ok(bindings)
}

impl WrittenPolicy {
    fn meant(self, folder: &Path) -> Result<Binding, String> {
        let name = self.name;
        check_name(&name)?;
        self.limits.check().map_err(|problem| format!("policy `{name}`: {problem}"))?;
        let settings = json(&toml::Value::Table(self.settings))
            .map_err(|problem| format!("policy `{name}`: settings: {problem}"))?
            .to_string();
        Ok(Binding {
            name,
            file: folder.join(self.file),
            hooks: self.hooks,
            mode: self.mode,
            on_failure: self.on_failure,
            limits: self.limits,
            settings: Some(settings),
        })
    }
}

/// Policies are named in answers to clients, so their names are plain.
fn check_name(name: &str) -> Result<(), String> {
    let is_plain = name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !is_plain {
        return Err(format!("name: `{name:.80}` is not 1 to {NAME_BYTES_MAX} of a-z, 0-9 and `-`"));
    }
    Ok(())
}

impl Limits {
    fn check(&self) -> Result<(), String> {
        let bounds = [
            ("fuel", self.fuel, 1, FUEL_MAX),
            ("deadline-ms", self.deadline_ms, 1, DEADLINE_MS_MAX),
            ("memory-bytes", self.memory_bytes, MEMORY_BYTES_MIN, MEMORY_BYTES_MAX),
        ];
        match bounds.into_iter().find(|(_, value, least, most)| value < least || value > most) {
            Some((key, value, least, most)) => Err(format!("limits.{key}: {value} is not within {least} to {most}")),
            None => Ok(()),
        }
    }
}

/// Settings are handed to policies as JSON, which every language reads. A time becomes a string.
fn json(value: &toml::Value) -> Result<serde_json::Value, String> {
    Ok(match value {
        toml::Value::String(text) => serde_json::Value::from(text.as_str()),
        toml::Value::Integer(number) => serde_json::Value::from(*number),
        toml::Value::Float(number) => serde_json::Number::from_f64(*number)
            .map(serde_json::Value::Number)
            .ok_or_else(|| format!("{number} is not a number in JSON"))?,
        toml::Value::Boolean(is_so) => serde_json::Value::from(*is_so),
        toml::Value::Datetime(time) => serde_json::Value::from(time.to_string()),
        toml::Value::Array(values) => values.iter().map(json).collect::<Result<_, _>>()?,
        toml::Value::Table(table) => {
            let pairs = table.iter().map(|(key, value)| Ok((key.clone(), json(value)?)));
            serde_json::Value::Object(pairs.collect::<Result<_, String>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let error = parse(Path::new("/etc/policies.toml"), text).expect_err("the file should have been refused");
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error} {source}")
    }

    #[test]
    fn what_a_binding_leaves_out_has_a_default() {
        let bindings = parse(Path::new("/etc/policies.toml"), "[[policy]]\nname = \"a\"\nfile = \"a.wasm\"\n").unwrap();
        assert_eq!(
            bindings,
            [Binding {
                name: "a".into(),
                file: "/etc/a.wasm".into(),
                hooks: None,
                mode: Mode::Enforce,
                on_failure: OnFailure::Deny,
                limits: Limits::default(),
                settings: Some("{}".into()),
            }]
        );
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_file_and_key() {
        let message = error("[[policy]]\nname = \"a\"\nfile = \"a.wasm\"\nonfailure = \"allow\"\n");
        assert!(message.contains("/etc/policies.toml") && message.contains("onfailure"), "{message}");
        let message = error("[[policy]]\nname = \"a\"\nfile = \"a.wasm\"\n[policy.limits]\nfule = 3\n");
        assert!(message.contains("fule"), "{message}");
        assert!(error("[[policies]]\n").contains("policies"));
        assert!(error("[[policy]]\nname = \"a\"\nfile = \"a\"\nmode = \"loud\"\n").contains("loud"));
        assert!(error("[[policy]]\nname = \"a\"\nfile = \"a\"\nhooks = [\"scan\"]\n").contains("scan"));
    }

    #[test]
    fn a_value_out_of_bounds_is_an_error_that_names_policy_and_key() {
        let limits = |line: &str| error(&format!("[[policy]]\nname = \"a\"\nfile = \"a\"\n[policy.limits]\n{line}\n"));
        assert!(limits("fuel = 0").contains("policy `a`: limits.fuel"));
        assert!(limits("deadline-ms = 60000").contains("limits.deadline-ms"));
        assert!(limits("memory-bytes = 100").contains("limits.memory-bytes"));
        assert!(error("[[policy]]\nname = \"A b\"\nfile = \"a\"\n").contains("name"));
        assert!(error("[[policy]]\nname = \"a\"\nfile = \"a\"\n".repeat(2).as_str()).contains("two policies"));
    }
}
