//! What the program returns, for scripts to tell endings apart.

use ampoule_client::types::{Ending, EndingKind};

/// An image is damaged, or was.
pub(super) const DAMAGED: u8 = 1;
/// A check found something, as docker's does.
pub(super) const CHECK_FAILED: u8 = 1;
/// A limit of processes, output or disk.
pub(super) const OTHER_LIMIT: u8 = 123;
/// Out of time, as `timeout` of coreutils returns it.
pub(super) const OUT_OF_TIME: u8 = 124;
/// Ampoule itself could not do it, as docker returns it.
pub(super) const OWN_FAILURE: u8 = 125;
/// Interrupted, as shells say it: 128 and the number of SIGINT.
pub(super) const CANCELLED: u8 = 130;
/// Killed for memory: 128 and the number of SIGKILL.
pub(super) const OUT_OF_MEMORY: u8 = 137;
/// Nobody reads the output any more: 128 and the number of SIGPIPE.
pub(super) const CLOSED_PIPE: u8 = 141;
/// What shells add to the number of a signal.
const SIGNAL_BASE: i32 = 128;

/// The exit code that stands for an ending.
pub(super) fn code(ending: &Ending) -> u8 {
    match ending.kind {
        EndingKind::Exited => byte(ending.exit_code.unwrap_or(i32::from(OWN_FAILURE))),
        EndingKind::Signaled => byte(SIGNAL_BASE + ending.signal.unwrap_or(0)),
        EndingKind::CpuLimit | EndingKind::WallLimit | EndingKind::Expired => OUT_OF_TIME,
        EndingKind::OutOfMemory => OUT_OF_MEMORY,
        EndingKind::PidsLimit | EndingKind::OutputLimit | EndingKind::DiskLimit => OTHER_LIMIT,
        EndingKind::Cancelled => CANCELLED,
        EndingKind::Denied | EndingKind::Failed => OWN_FAILURE,
    }
}

/// Codes outside of a byte are none that a process can return.
fn byte(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// How an ending is told to people, with its cause; `None` for a command that ended by itself.
pub(super) fn sentence(ending: &Ending) -> Option<String> {
    let what = match ending.kind {
        EndingKind::Exited => return None,
        EndingKind::Signaled => format!("signal {} ended the command", ending.signal.unwrap_or(0)),
        EndingKind::CpuLimit => "the processor time of the job was used up".to_owned(),
        EndingKind::WallLimit => "the time of the job was over".to_owned(),
        EndingKind::OutOfMemory => "the job reached its memory limit".to_owned(),
        EndingKind::PidsLimit => "the job reached its limit of processes".to_owned(),
        EndingKind::OutputLimit => "the job wrote more output than it may".to_owned(),
        EndingKind::DiskLimit => "a writable path of the job was full".to_owned(),
        EndingKind::Cancelled => "the job was cancelled".to_owned(),
        EndingKind::Expired => "the deadline of the job came before its turn".to_owned(),
        EndingKind::Denied => match &ending.policy {
            Some(policy) => format!("the policy `{policy}` refused the job"),
            None => "a policy refused the job".to_owned(),
        },
        EndingKind::Failed => "the job could not be run".to_owned(),
    };
    match &ending.detail {
        Some(detail) => Some(format!("{what}: {detail}")),
        None => Some(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(kind: EndingKind) -> Ending {
        Ending { kind, exit_code: None, signal: None, policy: None, retryable: false, detail: None }
    }

    #[test]
    fn the_exit_code_of_the_command_is_returned_as_it_is() {
        for exit_code in [0, 1, 42, 126, 127, 255] {
            assert_eq!(
                i32::from(code(&Ending { exit_code: Some(exit_code), ..ending(EndingKind::Exited) })),
                exit_code
            );
        }
    }

    #[test]
    fn signals_are_counted_as_shells_do() {
        assert_eq!(code(&Ending { signal: Some(11), ..ending(EndingKind::Signaled) }), 139);
        assert_eq!(code(&Ending { signal: Some(200), ..ending(EndingKind::Signaled) }), 255);
    }

    #[test]
    fn every_other_ending_has_its_code_and_its_sentence() {
        let codes: Vec<(&str, u8)> = EndingKind::ALL.iter().map(|kind| (kind.as_str(), code(&ending(*kind)))).collect();
        let expected = [
            ("exited", 125),
            ("signaled", 128),
            ("cpu_limit", 124),
            ("wall_limit", 124),
            ("out_of_memory", 137),
            ("pids_limit", 123),
            ("output_limit", 123),
            ("disk_limit", 123),
            ("cancelled", 130),
            ("expired", 124),
            ("denied", 125),
            ("failed", 125),
        ];
        assert_eq!(codes, expected);
        for kind in EndingKind::ALL {
            assert_eq!(sentence(&ending(kind)).is_none(), kind == EndingKind::Exited);
        }
    }
}
