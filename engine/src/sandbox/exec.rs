//! Pid 1's second half: starts the command, reaps whatever dies, and says how it ended.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{AccessFlags, Pid, access};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sandbox::descriptors::place_at;
use crate::sandbox::handshake::{CommandStatus, Finished, InitRequest, Start, message_buffer, receive};
use crate::sandbox::init::{Prepared, c_string};
use crate::sandbox::{artifacts, files};
use crate::spec::DEFAULT_PATH;
use crate::sys::{self, SysError, failed};

/// Exit code for a program that is there but cannot be executed, as in POSIX `sh`.
const NOT_EXECUTABLE: i32 = 126;
/// Exit code for a program that is not there.
const NOT_FOUND: i32 = 127;
/// Value of `oom_score_adj` for what is to be killed before anything else (proc(5)).
const KILLED_FIRST: &[u8] = b"1000";
/// Its value for what is killed by how much memory it holds.
const KILLED_BY_SIZE: &[u8] = b"0";

/// Why a command could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error(transparent)]
    System(#[from] SysError),
    #[error("the launcher sent {sent} descriptors for a command that needs {needed}")]
    Descriptors { sent: usize, needed: usize },
    #[error(
        "could not enter the working directory {path}: {problem}\nhint: it must exist in the image or be below a writable path"
    )]
    WorkingDirectory { path: String, problem: String },
    #[error("cannot open {wanted} files at once: this machine allows {allowed}")]
    OpenFiles { wanted: u64, allowed: u64 },
    #[error(transparent)]
    Files(#[from] files::FilesError),
}

impl ExecError {
    /// Whether the same request may work on another try.
    pub(crate) fn is_retryable(&self) -> bool {
        matches!(self, ExecError::System(_) | ExecError::Descriptors { .. })
    }
}

/// The descriptors of a command, by their use.
struct Streams {
    badness: OwnedFd,
    standard: [OwnedFd; 3],
    files: Option<OwnedFd>,
    artifacts: Option<OwnedFd>,
}

impl Streams {
    fn sort(start: &Start, badness: Option<OwnedFd>, descriptors: Vec<OwnedFd>) -> Result<Streams, ExecError> {
        let needed = 4 + usize::from(start.has_files) + usize::from(start.has_artifacts);
        let sent = usize::from(badness.is_some()) + descriptors.len();
        let mut rest = descriptors.into_iter();
        match (badness, rest.next(), rest.next(), rest.next()) {
            (Some(badness), Some(stdin), Some(stdout), Some(stderr)) if sent == needed => Ok(Streams {
                badness,
                standard: [stdin, stdout, stderr],
                files: if start.has_files { rest.next() } else { None },
                artifacts: if start.has_artifacts { rest.next() } else { None },
            }),
            _ => Err(ExecError::Descriptors { sent, needed }),
        }
    }
}

/// Runs the command to its end, and collects what is to come out.
///
/// # Errors
/// What kept the command from being started. A program that is not there is no error but exit code 127.
pub(crate) fn run(
    sandbox: &Prepared,
    start: &Start,
    badness: Option<OwnedFd>,
    descriptors: Vec<OwnedFd>,
) -> Result<Finished, ExecError> {
    let began = Instant::now();
    let streams = Streams::sort(start, badness, descriptors)?;
    if let Some(archive) = streams.files {
        files::unpack(File::from(archive), &start.cwd)?;
    }
    enter_working_directory(&start.cwd)?;
    set_limits(start)?;
    for (place, stream) in (0..).zip(&streams.standard) {
        place_at(stream, place)?;
    }
    drop(streams.standard);
    // The command and its children, not pid 1, shall die when the memory ends: they inherit what is set here.
    set_badness(&streams.badness, KILLED_FIRST)?;
    let spawning = Instant::now();
    let spawned = spawn(sandbox, start);
    set_badness(&streams.badness, KILLED_BY_SIZE)?;
    drop(streams.badness);
    close_standard_streams();
    let exec_us = microseconds(began.elapsed());
    let command = match spawned {
        Ok(command) => command,
        Err(refusal) => return Ok(refusal.into_finished(exec_us)),
    };
    let end = follow(sandbox, command, Duration::from_millis(start.wall_time_ms))?;
    let mut finished = Finished {
        status: end.status,
        wall_limit: end.wall_limit,
        disk_full: end.status != CommandStatus::Exited(0) && sandbox.writable.iter().any(|path| is_full(path)),
        detail: String::new(),
        left_out: Vec::new(),
        wall_us: microseconds(spawning.elapsed()),
        exec_us,
    };
    // What is told next is final: nothing of the command is left that could write, or be counted.
    end_all_others();
    if let Some(pipe) = streams.artifacts {
        (finished.left_out, finished.detail) =
            artifacts::collect(&start.artifacts, &sandbox.writable, File::from(pipe));
    }
    Ok(finished)
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Enters the working directory, which is made when it is below a writable path, and makes sure that it is inside
/// of the root: a descriptor of the host's that leaked would make `/proc/self/fd/N` a way out.
fn enter_working_directory(path: &str) -> Result<(), ExecError> {
    let refuse = |problem: String| ExecError::WorkingDirectory { path: path.to_owned(), problem };
    if !Path::new(path).is_dir() {
        std::fs::create_dir_all(path).map_err(|error| refuse(error.to_string()))?;
    }
    std::env::set_current_dir(path).map_err(|error| refuse(error.to_string()))?;
    match std::env::current_dir() {
        Ok(inside) if inside.is_absolute() => Ok(()),
        _ => Err(refuse("it is outside of the sandbox".to_owned())),
    }
}

fn set_badness(badness: &OwnedFd, value: &[u8]) -> Result<(), SysError> {
    rustix::io::pwrite(badness, value, 0).map(drop).map_err(failed("set", "who is killed for memory"))
}

fn set_limits(start: &Start) -> Result<(), ExecError> {
    let allowed = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if start.open_files > allowed {
        return Err(ExecError::OpenFiles { wanted: start.open_files, allowed });
    }
    for (resource, limit) in
        [(Resource::Nofile, start.open_files), (Resource::Fsize, start.file_bytes), (Resource::Core, 0)]
    {
        let most = getrlimit(resource).maximum.map_or(limit, |maximum| maximum.min(limit));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
            .map_err(failed("set", format!("{resource:?} limit")))?;
    }
    Ok(())
}

/// A program that cannot be started, in the terms of a shell.
struct Refusal {
    code: i32,
    detail: String,
}

impl Refusal {
    fn into_finished(self, exec_us: u64) -> Finished {
        let status = CommandStatus::Exited(self.code);
        Finished {
            status,
            wall_limit: false,
            disk_full: false,
            detail: self.detail,
            left_out: Vec::new(),
            wall_us: 0,
            exec_us,
        }
    }
}

fn spawn(sandbox: &Prepared, start: &Start) -> Result<Pid, Refusal> {
    let program = find_program(start)?;
    let cannot = |error: Errno| Refusal {
        code: if error == Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE },
        detail: format!("{}: {}", program.to_string_lossy(), error.desc()),
    };
    let attributes = spawn_attributes().map_err(cannot)?;
    let actions = PosixSpawnFileActions::init().map_err(cannot)?;
    let c_strings = |texts: &[String]| texts.iter().map(|text| c_string(text)).collect::<Result<Vec<_>, _>>();
    let argv = c_strings(&start.argv).map_err(|_| cannot(Errno::EINVAL))?;
    let env = c_strings(&environment(sandbox, start)).map_err(|_| cannot(Errno::EINVAL))?;
    posix_spawn(program.as_c_str(), &actions, &attributes, &argv, &env).map_err(cannot)
}

/// The command starts with every signal at its default and none blocked: what is ignored survives exec.
fn spawn_attributes() -> Result<PosixSpawnAttr, Errno> {
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK)?;
    attributes.set_sigdefault(&SigSet::all())?;
    attributes.set_sigmask(&SigSet::empty())?;
    Ok(attributes)
}

fn environment(sandbox: &Prepared, start: &Start) -> Vec<String> {
    let mut variables: Vec<String> = start.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if let Some(home) = &sandbox.identity.home
        && !start.env.iter().any(|(name, _)| name == "HOME")
    {
        variables.push(format!("HOME={home}"));
    }
    variables
}

/// The file to execute: the path as given, or the first executable of that name in `PATH`.
fn find_program(start: &Start) -> Result<CString, Refusal> {
    let name = start.argv.first().map_or("", String::as_str);
    let as_path = |path: String| CString::new(path).map_err(|_| Refusal { code: NOT_FOUND, detail: name.to_owned() });
    if name.contains('/') {
        return as_path(name.to_owned());
    }
    let search = start.env.iter().find(|(variable, _)| variable == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
    let mut found_other = false;
    for folder in search.split(':') {
        let candidate = if folder.is_empty() { format!("./{name}") } else { format!("{folder}/{name}") };
        match access(candidate.as_str(), AccessFlags::X_OK) {
            Ok(()) if Path::new(&candidate).is_file() => return as_path(candidate),
            Ok(()) | Err(Errno::EACCES) => found_other = true,
            Err(_) => {}
        }
    }
    let (code, problem) =
        if found_other { (NOT_EXECUTABLE, "permission denied") } else { (NOT_FOUND, "not found in PATH") };
    Err(Refusal { code, detail: format!("{name}: {problem}") })
}

/// The command has its own names of the streams now; a reader must see their end when the command's are closed.
fn close_standard_streams() {
    for stream in 0..3 {
        // A stream that cannot be taken is closed already.
        drop(sys::inherited_descriptor(stream));
    }
}

struct End {
    status: CommandStatus,
    wall_limit: bool,
}

/// Waits for the end of the command, or brings it about.
fn follow(sandbox: &Prepared, command: Pid, wall_time: Duration) -> Result<End, ExecError> {
    let deadline = Instant::now() + wall_time;
    let mut wall_limit = false;
    loop {
        if let Some(status) = reap(command) {
            return Ok(End { status, wall_limit });
        }
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() && !wall_limit {
            wall_limit = true;
            kill_all_others();
        }
        let timeout = if wall_limit { PollTimeout::NONE } else { poll_timeout(remaining) };
        let mut sources = [
            PollFd::new(sandbox.children.as_fd(), PollFlags::POLLIN),
            PollFd::new(sandbox.control.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut sources, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(failed("wait for", "the command")(error).into()),
        }
        if sources[0].any() == Some(true) {
            forget_signals(sandbox);
        }
        if sources[1].any() == Some(true) {
            match receive(&sandbox.control, &mut message_buffer()) {
                Ok(Some((InitRequest::Stop, _))) => kill_all_others(),
                // A second start, or no launcher any more: either way this sandbox is at its end.
                _ => sys::exit_now(1),
            }
        }
    }
}

/// Milliseconds rounded up, so that the wait does not end before the deadline and spin.
fn poll_timeout(remaining: Duration) -> PollTimeout {
    let milliseconds = remaining.as_millis().saturating_add(1).min(i32::MAX as u128);
    PollTimeout::try_from(milliseconds as i32).unwrap_or(PollTimeout::MAX)
}

/// Empties the descriptor; the dead are found by waiting, since signals of several deaths melt into one.
fn forget_signals(sandbox: &Prepared) {
    let mut signals = [0_u8; 1024];
    while rustix::io::read(&sandbox.children, &mut signals).is_ok() {}
}

/// Takes in all the dead; the status of the command when it is among them.
fn reap(command: Pid) -> Option<CommandStatus> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == command => return Some(CommandStatus::Exited(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => {
                return Some(CommandStatus::Signaled(signal as i32));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            _ => {}
        }
    }
}

/// Kills every process of the sandbox but this one.
fn kill_all_others() {
    // Nobody left to kill is what was wanted.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
}

/// Ends every other process, so that what is collected stands still.
fn end_all_others() {
    kill_all_others();
    while waitpid(None, None).is_ok() {}
}

fn is_full(path: &str) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|stat| stat.f_bfree == 0 || stat.f_ffree == 0)
}
