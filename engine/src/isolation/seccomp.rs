//! The system-call filter of a sandbox: read from data, compiled once to a range tree, installed in microseconds.
//! What is allowed and why stands in `seccomp.json` (jobs) and `seccomp/worker.json`; nothing of it is in code.
//!
//! Installing makes the kernel run the program once for every call number, so its depth counts more than its length:
//! a binary search over ranges of numbers is several times faster to install than a list of comparisons.

use seccompiler::BpfProgram;

use crate::isolation::seccomp::profile::{Problem, Rules};

mod constants;
#[cfg(test)]
mod machine;
mod numbers;
mod profile;
#[cfg(test)]
mod tests;
mod tree;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the system-call filter is written for x86_64: numbers and arguments of other processors differ");

/// For whom a filter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// A job's commands: real software of any kind.
    Job,
    /// Our own workers that read hostile archives, as root of their own user namespace.
    Worker,
}

impl Profile {
    fn source(self) -> &'static str {
        match self {
            Profile::Job => include_str!("seccomp.json"),
            Profile::Worker => include_str!("seccomp/worker.json"),
        }
    }
}

/// A compiled filter, made once and installed in every sandbox of its profile.
#[derive(Clone, Debug)]
pub struct Filter {
    program: BpfProgram,
}

/// Compiles the filter of a profile. Allocates: call it before any sandbox is made.
pub fn compile(profile: Profile) -> Result<Filter, SeccompError> {
    let rules = Rules::read(profile.source()).map_err(|source| SeccompError::Profile { profile, source })?;
    let program = tree::assemble(&rules.ranges());
    if program.len() > INSTRUCTIONS_MAX {
        return Err(SeccompError::TooLong { profile, instructions: program.len() });
    }
    Ok(Filter { program })
}

/// How many instructions the kernel takes in one filter (BPF_MAXINSNS).
const INSTRUCTIONS_MAX: usize = 4096;

impl Filter {
    /// Sets no_new_privs and installs the filter in the calling thread, for good and for all its children.
    /// Allocates nothing, so it may be called between clone and exec.
    pub fn install(&self) -> Result<(), SeccompError> {
        seccompiler::apply_filter(&self.program).map_err(SeccompError::Install)
    }

    /// As `install`, in every thread of the process.
    pub fn install_in_all_threads(&self) -> Result<(), SeccompError> {
        seccompiler::apply_filter_all_threads(&self.program).map_err(SeccompError::Install)
    }
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The profile's data breaks its own rules.
    #[error("cannot read the system-call profile {profile:?}")]
    Profile {
        /// Which profile.
        profile: Profile,
        /// What is wrong with it.
        source: Problem,
    },
    /// The profile has more rules than the kernel takes.
    #[error(
        "the system-call profile {profile:?} compiles to {instructions} instructions, more than {INSTRUCTIONS_MAX}"
    )]
    TooLong {
        /// Which profile.
        profile: Profile,
        /// How many instructions it came to.
        instructions: usize,
    },
    /// The kernel refused the filter.
    #[error("cannot install the system-call filter\nhint: the kernel needs CONFIG_SECCOMP_FILTER")]
    Install(#[source] seccompiler::Error),
}
