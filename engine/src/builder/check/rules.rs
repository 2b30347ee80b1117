//! The rules by name, with what each says in general.

use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// One of Docker's checks: the command fails with it, as Docker's does.
    Warning,
    /// A practice: said, and nothing else.
    Advice,
}

/// A table of rules: each with its name as written, its severity, the last part of its page at Docker's when it has
/// one, and how to mend what it finds.
macro_rules! rules {
    ($($rule:ident, $severity:ident, $page:literal, $mend:literal;)*) => {
        /// A rule.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Rule {
            $(#[doc = $mend] $rule,)*
        }

        impl Rule {
            /// All rules.
            pub const ALL: &[Rule] = &[$(Rule::$rule),*];

            /// Its name, as directives have it.
            pub fn name(self) -> &'static str {
                match self { $(Rule::$rule => stringify!($rule),)* }
            }

            /// How much it matters.
            pub fn severity(self) -> Severity {
                match self { $(Rule::$rule => Severity::$severity,)* }
            }

            fn page(self) -> &'static str {
                match self { $(Rule::$rule => $page,)* }
            }

            /// How to mend what it finds.
            pub fn mend(self) -> &'static str {
                match self { $(Rule::$rule => $mend,)* }
            }
        }
    };
}

rules! {
    StageNameCasing, Warning, "stage-name-casing", "write the name in lower case; it is compared in lower case anyway";
    FromAsCasing, Warning, "from-as-casing", "write FROM and AS both in capitals or both in lower case";
    NoEmptyContinuation, Warning, "no-empty-continuation", "remove the empty line, or put a # on it";
    ConsistentInstructionCasing, Warning, "consistent-instruction-casing", "write all instructions in capitals, or all in lower case";
    DuplicateStageName, Warning, "duplicate-stage-name", "give every stage a name of its own; only the last of them can be reached by name";
    ReservedStageName, Warning, "reserved-stage-name", "choose another name; this one already means something";
    JSONArgsRecommended, Warning, "json-args-recommended", "write a JSON array, as in CMD [\"app\", \"--flag\"]: a shell in between swallows signals";
    MaintainerDeprecated, Warning, "maintainer-deprecated", "write LABEL org.opencontainers.image.authors=\"name\"";
    UndefinedArgInFrom, Warning, "undefined-arg-in-from", "declare it with ARG above the first FROM";
    WorkdirRelativePath, Warning, "workdir-relative-path", "write the whole path, as in WORKDIR /app";
    UndefinedVar, Warning, "undefined-var", "declare it in this stage with ARG or ENV; arguments above FROM must be declared again";
    MultipleInstructionsDisallowed, Warning, "multiple-instructions-disallowed", "keep the last of them; the others have no effect";
    LegacyKeyValueFormat, Warning, "legacy-key-value-format", "write NAME=value, with quotes when the value has blanks";
    InvalidBaseImagePlatform, Warning, "", "use a base that is made for the platform, or build for the base's with --platform";
    RedundantTargetPlatform, Warning, "redundant-target-platform", "remove the flag; it is what happens without it";
    SecretsUsedInArgOrEnv, Warning, "secrets-used-in-arg-or-env", "use RUN --mount=type=secret: arguments and variables can be read from the image";
    InvalidDefaultArgInFrom, Warning, "invalid-default-arg-in-from", "give the argument a default with which the name of the image is complete";
    FromPlatformFlagConstDisallowed, Warning, "from-platform-flag-const-disallowed", "use $BUILDPLATFORM or $TARGETPLATFORM, or name the platform in the name of the stage";
    CopyIgnoredFile, Warning, "copy-ignored-file", "take the pattern out of .dockerignore, or do not copy the file";
    InvalidDefinitionDescription, Warning, "invalid-definition-description", "start the comment with the name that it describes, or put an empty line below it";
    ExposeProtoCasing, Warning, "expose-proto-casing", "write the protocol in lower case, as in 80/tcp";
    ExposeInvalidFormat, Warning, "expose-invalid-format", "name the container's port only; the host's is chosen when a container is started";
    UnpinnedBase, Advice, "", "pin the base by digest, as in debian:13@sha256:…, so that every build starts with the same files";
    AptUpdateAndInstall, Advice, "", "write apt-get update && apt-get install in one RUN: a cached update would install old packages";
    PackageListsKept, Advice, "", "remove them in the same RUN, as in rm -rf /var/lib/apt/lists/*, or use a cache mount; a later RUN makes nothing smaller";
    RunsAsRoot, Advice, "", "add a user and end with USER name, so that a hole in the program is not one in the container";
    DownloadWithoutChecksum, Advice, "", "add --checksum=sha256:…, so that nobody can change what is downloaded";
    CopySourceMissing, Advice, "", "make the file before the build, or correct the path; paths start at the root of the context";
}

impl Rule {
    /// Where Docker explains it.
    pub fn url(self) -> Option<String> {
        (!self.page().is_empty()).then(|| format!("https://docs.docker.com/go/dockerfile/rule/{}/", self.page()))
    }

    /// Whether it is asked only when a Dockerfile wants it.
    pub fn is_experimental(self) -> bool {
        self == Rule::InvalidDefinitionDescription
    }
}
