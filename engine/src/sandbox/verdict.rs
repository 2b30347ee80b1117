//! Why a sandbox ended: one pure function over all that was seen of it.

use std::time::Duration;

use crate::isolation::cgroup::{CgroupError, Usage};
use crate::sandbox::handshake::{CommandStatus, Finished};
use crate::spec::{Ending, Exit, Figures, Phases, StopReason};
use crate::sys::in_one_line;

/// What is known of a sandbox that is gone.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// The last word of pid 1; a refusal to start is `Err`, with whether another try may help.
    pub(crate) word: Option<Result<Finished, (String, bool)>>,
    /// Asked for from outside, before pid 1's last word.
    pub(crate) stop: Option<StopReason>,
    /// The launcher saw the processor time used up.
    pub(crate) cpu_limit: bool,
    /// Processes killed for memory.
    pub(crate) oom_kills: u64,
    /// Processes refused by the pids limit.
    pub(crate) pids_refused: u64,
}

/// How a sandbox ended: its ending, with what it used. `since_start` is the time since it was given its command.
pub(crate) fn conclude(
    mut evidence: Evidence,
    usage: Result<Usage, CgroupError>,
    phases: Phases,
    since_start: Duration,
) -> Exit {
    let wall_us = match &evidence.word {
        Some(Ok(finished)) => finished.wall_us,
        // Pid 1 died before it could say.
        _ => u64::try_from(since_start.as_micros()).unwrap_or(u64::MAX),
    };
    let figures = match usage {
        Ok(usage) => {
            evidence.oom_kills = usage.oom_kills;
            evidence.pids_refused = usage.pids_refused;
            figures(&usage, wall_us)
        }
        // Without its figures nobody can say why it ended.
        Err(error) => {
            evidence.word = Some(Err((in_one_line(&error), true)));
            Figures { wall_us, ..Figures::default() }
        }
    };
    let ending = decide(&evidence);
    let (detail, left_out) = match evidence.word {
        Some(Ok(finished)) => (finished.detail, finished.left_out),
        _ => (String::new(), Vec::new()),
    };
    Exit { ending, detail, figures, phases, left_out }
}

fn figures(usage: &Usage, wall_us: u64) -> Figures {
    Figures {
        wall_us,
        cpu_user_us: usage.cpu_user_us,
        cpu_system_us: usage.cpu_system_us,
        memory_peak_bytes: usage.memory_peak_bytes,
        oom_kills: usage.oom_kills,
        pids_refused: usage.pids_refused,
        throttled_us: usage.throttled_us,
    }
}

/// Names the cause that explains the rest. A command that returned 0 reached no limit that mattered to it.
pub(crate) fn decide(evidence: &Evidence) -> Ending {
    let succeeded = matches!(&evidence.word, Some(Ok(Finished { status: CommandStatus::Exited(0), .. })));
    if evidence.cpu_limit && !succeeded {
        return Ending::CpuLimit;
    }
    match (&evidence.stop, &evidence.word) {
        // The command was faster than the stop.
        (Some(_), Some(Ok(Finished { status: CommandStatus::Exited(code), .. }))) => Ending::Exited(*code),
        (Some(StopReason::Cancelled), _) => Ending::Cancelled,
        (Some(StopReason::OutputLimit), _) => Ending::OutputLimit,
        (Some(StopReason::WallLimit), _) if evidence.pids_refused > 0 => Ending::PidsLimit,
        (Some(StopReason::WallLimit), _) => Ending::WallLimit,
        (None, Some(Ok(finished))) => decide_finished(evidence, finished),
        (None, Some(Err(_)) | None) if evidence.oom_kills > 0 => Ending::OutOfMemory,
        (None, Some(Err((reason, retryable)))) => Ending::Failed { reason: reason.clone(), retryable: *retryable },
        (None, None) => Ending::Failed { reason: "the sandbox died without a word".to_owned(), retryable: true },
    }
}

fn decide_finished(evidence: &Evidence, finished: &Finished) -> Ending {
    match finished.status {
        CommandStatus::Exited(0) => Ending::Exited(0),
        _ if evidence.oom_kills > 0 => Ending::OutOfMemory,
        // Before the time: what spins because it gets no process runs until its time is over.
        _ if evidence.pids_refused > 0 => Ending::PidsLimit,
        _ if finished.wall_limit => Ending::WallLimit,
        _ if finished.disk_full => Ending::DiskLimit,
        CommandStatus::Exited(code) => Ending::Exited(code),
        CommandStatus::Signaled(signal) => Ending::Signaled(signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(status: CommandStatus) -> Finished {
        Finished {
            status,
            wall_limit: false,
            disk_full: false,
            detail: String::new(),
            left_out: Vec::new(),
            wall_us: 0,
            exec_us: 0,
        }
    }

    fn check(evidence: Evidence, expected: Ending) {
        assert_eq!(decide(&evidence), expected, "{evidence:?}");
    }

    #[test]
    fn a_plain_end_is_told_as_it_was() {
        for status in [CommandStatus::Exited(0), CommandStatus::Exited(3)] {
            let CommandStatus::Exited(code) = status else { continue };
            check(Evidence { word: Some(Ok(finished(status))), ..Evidence::default() }, Ending::Exited(code));
        }
        let killed = Some(Ok(finished(CommandStatus::Signaled(11))));
        check(Evidence { word: killed, ..Evidence::default() }, Ending::Signaled(11));
    }

    #[test]
    fn a_limit_explains_a_failure_but_not_a_success() {
        let with = |code| Evidence {
            word: Some(Ok(finished(CommandStatus::Exited(code)))),
            oom_kills: 1,
            pids_refused: 5,
            cpu_limit: true,
            stop: None,
        };
        check(with(0), Ending::Exited(0));
        check(with(1), Ending::CpuLimit);
        check(Evidence { cpu_limit: false, ..with(1) }, Ending::OutOfMemory);
        check(Evidence { cpu_limit: false, oom_kills: 0, ..with(1) }, Ending::PidsLimit);
    }

    #[test]
    fn a_stop_that_came_too_late_changes_nothing() {
        let late = Evidence {
            word: Some(Ok(finished(CommandStatus::Exited(7)))),
            stop: Some(StopReason::Cancelled),
            ..Evidence::default()
        };
        check(late, Ending::Exited(7));
    }

    #[test]
    fn a_stop_names_its_reason() {
        for (reason, ending) in [
            (StopReason::Cancelled, Ending::Cancelled),
            (StopReason::OutputLimit, Ending::OutputLimit),
            (StopReason::WallLimit, Ending::WallLimit),
        ] {
            let killed = Some(Ok(finished(CommandStatus::Signaled(9))));
            check(Evidence { word: killed, stop: Some(reason), ..Evidence::default() }, ending.clone());
            check(Evidence { stop: Some(reason), ..Evidence::default() }, ending);
        }
    }

    #[test]
    fn a_sandbox_that_says_nothing_died_of_memory_or_failed() {
        check(Evidence { oom_kills: 1, ..Evidence::default() }, Ending::OutOfMemory);
        assert!(matches!(decide(&Evidence::default()), Ending::Failed { retryable: true, .. }));
    }
}
