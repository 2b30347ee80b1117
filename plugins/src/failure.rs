//! What comes of a call, and why one brings no answer: the sentence and code for the client, the detail for the operator.

use wasmtime::Trap;

/// Most bytes of detail that are kept of one failure: backtrace, log and standard error.
const DETAIL_BYTES_MAX: usize = 4096;

/// What came of one call.
pub(crate) struct Asked<T> {
    /// The answer, or why there is none.
    pub(crate) result: Result<T, Failure>,
    /// Fuel that it used.
    pub(crate) fuel: u64,
}

/// A call that brought no answer.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What went wrong.
    pub(crate) kind: FailureKind,
    /// Backtrace, last log lines and standard error of the policy; may be empty.
    pub(crate) detail: String,
}

/// What went wrong in a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FailureKind {
    #[error("it used up its fuel of {0}")]
    Fuel(u64),
    #[error("it did not answer within {0} ms")]
    Deadline(u64),
    #[error("it asked for more memory than its {0} bytes")]
    Memory(u64),
    #[error("it recursed too deeply")]
    Stack,
    #[error("it trapped: {0}")]
    Trap(String),
    #[error("it exited with status {0}")]
    Exit(i32),
    #[error("its answer breaks the contract: {0}")]
    Malformed(String),
    #[error("the host could not ask it: {0}")]
    Host(String),
}

impl FailureKind {
    /// The stable code that a client sees.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            FailureKind::Fuel(_) => "policy-out-of-fuel",
            FailureKind::Deadline(_) => "policy-deadline",
            FailureKind::Memory(_) => "policy-out-of-memory",
            FailureKind::Stack => "policy-stack-overflow",
            FailureKind::Trap(_) | FailureKind::Exit(_) | FailureKind::Host(_) => "policy-failed",
            FailureKind::Malformed(_) => "policy-malformed-answer",
        }
    }
}

impl Failure {
    /// An answer that could be read but breaks the contract.
    pub(crate) fn malformed(problem: impl Into<String>) -> Failure {
        Failure { kind: FailureKind::Malformed(problem.into()), detail: String::new() }
    }

    /// The call could not even be made.
    pub(crate) fn host(problem: impl Into<String>) -> Failure {
        Failure { kind: FailureKind::Host(problem.into()), detail: String::new() }
    }

    /// Adds what the policy itself had to say, cut to its end.
    pub(crate) fn with_output(mut self, title: &str, output: &str) -> Failure {
        let output = output.trim();
        if !output.is_empty() {
            let start = output.len().saturating_sub(DETAIL_BYTES_MAX / 2);
            let start = (start..=output.len()).find(|index| output.is_char_boundary(*index)).unwrap_or(0);
            self.detail = format!("{}\n{title}: {}", self.detail, &output[start..]).trim().to_owned();
        }
        self
    }

    /// Sentence and detail together, for the stored decision.
    pub(crate) fn describe(&self) -> String {
        if self.detail.is_empty() { self.kind.to_string() } else { format!("{}\n{}", self.kind, self.detail) }
    }
}

/// The limits that a call ran under, and whether it ran into the one that leaves no trace in a trap.
pub(crate) struct Bounds {
    pub(crate) fuel: u64,
    pub(crate) deadline_ms: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) is_memory_denied: bool,
}

impl Bounds {
    /// Tells apart why wasmtime ended a call.
    pub(crate) fn explain(&self, error: &wasmtime::Error) -> Failure {
        let kind = match error.downcast_ref::<Trap>() {
            Some(Trap::OutOfFuel) => FailureKind::Fuel(self.fuel),
            Some(Trap::Interrupt) => FailureKind::Deadline(self.deadline_ms),
            // A guest whose growth was denied ends in whatever its allocator does then, mostly `unreachable`.
            _ if self.is_memory_denied => FailureKind::Memory(self.memory_bytes),
            Some(Trap::StackOverflow) => FailureKind::Stack,
            Some(trap) => FailureKind::Trap(trap.to_string().trim_start_matches("wasm trap: ").to_owned()),
            None => match error.downcast_ref::<wasmtime_wasi::I32Exit>() {
                Some(exit) => FailureKind::Exit(exit.0),
                None => FailureKind::Trap(error.root_cause().to_string()),
            },
        };
        let mut detail = format!("{error:#}");
        detail.truncate(
            (0..=DETAIL_BYTES_MAX.min(detail.len())).rev().find(|i| detail.is_char_boundary(*i)).unwrap_or(0),
        );
        Failure { kind, detail }
    }
}
