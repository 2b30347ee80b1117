//! A real service in a folder that vanishes. When it goes out of scope it is stopped, and whatever it leaves on
//! the host fails the test.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ampoule_client::types::{EndingKind, Image, ImageList, Job, JobRequest, JobState};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{self as process_control, set_child_subreaper};
use tempfile::TempDir;

use crate::http::{Answer, Connection};
use crate::{ampoule_program, archive, host, patience};

/// How long the service may take to answer after its start.
const START_TIME: Duration = Duration::from_secs(30);
/// How long it may take to stop, and the kernel to let go of what it held.
const STOP_TIME: Duration = Duration::from_secs(30);
/// How often something that has no event is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How a service is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The text of `policies.toml`; without it no policy is bound.
    pub policies: Option<String>,
    /// More arguments for `ampoule serve`.
    pub arguments: Vec<String>,
    /// More environment.
    pub environment: BTreeMap<String, String>,
    /// Leaves the store empty instead of importing `busybox`.
    pub without_image: bool,
}

/// A running service with a state folder of its own.
pub struct Service {
    folder: TempDir,
    options: Options,
    pid: Option<Pid>,
}

impl Service {
    /// Starts a service without policies, with `busybox` imported.
    pub fn start() -> Service {
        Service::with(Options::default())
    }

    /// Starts a service with these settings of registries, which go with it.
    ///
    /// # Panics
    /// As `with`.
    pub fn with_registries(settings: &str, mut options: Options) -> (Service, TempDir) {
        let folder = TempDir::with_prefix("ampoule-settings-").expect("the temporary folder can be written");
        let file = folder.path().join("registries.toml");
        fs::write(&file, settings).expect("the folder can be written");
        options.arguments.extend(["--registries".to_owned(), file.to_string_lossy().into_owned()]);
        (Service::with(options), folder)
    }

    /// Starts a service.
    ///
    /// # Panics
    /// When it does not answer; the message shows its log.
    pub fn with(options: Options) -> Service {
        // Whatever the service leaves behind becomes our child instead of pid 1's, so nothing can hide.
        set_child_subreaper(Some(process_control::getpid())).expect("a process may be a subreaper");
        let folder = TempDir::with_prefix("ampoule-test-").expect("the temporary folder can be written");
        // The service is another user and must reach its state folder in here.
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
        if let Some(policies) = &options.policies {
            fs::write(folder.path().join("policies.toml"), policies).expect("the folder can be written");
        }
        let mut service = Service { folder, options, pid: None };
        service.spawn();
        if !service.options.without_image {
            service.import(&archive::busybox(), "busybox");
        }
        service
    }

    /// Starts the service again on the same state, after `kill` or `stop`.
    ///
    /// # Panics
    /// When it runs already, or does not answer.
    #[expect(clippy::zombie_processes, reason = "it is waited for by its pid, in `kill` and `is_alive`")]
    pub fn spawn(&mut self) {
        assert!(self.pid.is_none(), "the service runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("the folder can be written");
        let mut command = Command::new(ampoule_program());
        command.arg("serve").arg("--state").arg(self.state()).arg("--socket").arg(self.socket());
        if self.options.policies.is_some() {
            command.arg("--policies").arg(self.folder.path().join("policies.toml"));
        }
        command.args(&self.options.arguments).envs(&self.options.environment);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor can be copied")).stderr(log);
        let child = command.spawn().expect("the program can be run");
        self.pid = Some(Pid::from_raw(child.id().cast_signed()));
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + patience(START_TIME);
        while Instant::now() < deadline {
            if let Ok(answer) = self.try_send("GET", "/readyz", &[], b"")
                && answer.status == 200
            {
                return;
            }
            assert!(self.is_alive(), "the service ended at its start\n{}", self.log());
            thread::sleep(LOOK_EVERY);
        }
        panic!("the service does not answer\n{}", self.log());
    }

    fn is_alive(&mut self) -> bool {
        let Some(pid) = self.pid else { return false };
        let alive = matches!(waitpid(pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive));
        if !alive {
            self.pid = None;
        }
        alive
    }

    /// The service's process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> Pid {
        self.pid.expect("the service runs")
    }

    /// The launcher's process: the service's child that is still root.
    ///
    /// # Panics
    /// When there is none.
    pub fn launcher(&self) -> Pid {
        let children = host::processes().into_iter().filter(|process| process.parent == self.pid().as_raw());
        let launcher = children.into_iter().next().unwrap_or_else(|| panic!("no launcher\n{}", self.log()));
        Pid::from_raw(launcher.pid)
    }

    /// The state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run").join("ampoule.sock")
    }

    /// A throw-away folder beside the state folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What the service logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A connection of its own.
    ///
    /// # Panics
    /// When nobody listens.
    pub fn connect(&self) -> Connection {
        Connection::open(&self.socket()).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// Sends a request on a connection of its own.
    ///
    /// # Panics
    /// When no answer comes.
    pub fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_send(method, target, headers, body)
            .unwrap_or_else(|error| panic!("{method} {target}: {error}\n{}", self.log()))
    }

    /// Sends a request on a connection of its own.
    ///
    /// # Errors
    /// No answer came.
    pub fn try_send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
        Connection::open(&self.socket())?.send(method, target, headers, body)
    }

    /// `GET`, expecting 200.
    pub fn get(&self, target: &str) -> Answer {
        self.send("GET", target, &[], b"").expect_status(200)
    }

    /// `POST` of JSON, whatever the answer.
    pub fn post(&self, target: &str, body: &impl serde::Serialize) -> Answer {
        let body = serde_json::to_vec(body).expect("our types are JSON");
        self.send("POST", target, &[("content-type", "application/json")], &body)
    }

    /// Imports a root file system or an image archive under a name.
    ///
    /// # Panics
    /// When it is refused.
    pub fn import(&self, archive: &[u8], name: &str) -> Image {
        let answer = self.try_import(archive, name);
        assert!((200..300).contains(&answer.status), "HTTP {}: {}\n{}", answer.status, answer.text(), self.log());
        answer.json::<ImageList>().images.into_iter().next().expect("an archive brings an image")
    }

    /// Imports an archive, whatever the answer.
    pub fn try_import(&self, archive: &[u8], name: &str) -> Answer {
        self.send("POST", &format!("/v1/images/import?name={name}"), &[("content-type", "application/x-tar")], archive)
    }

    /// Submits a job without waiting for its end.
    ///
    /// # Panics
    /// When it is not taken.
    pub fn submit(&self, request: &JobRequest) -> Job {
        let answer = self.post("/v1/jobs", request);
        assert!((200..300).contains(&answer.status), "HTTP {}: {}\n{}", answer.status, answer.text(), self.log());
        answer.json()
    }

    /// Runs a job to its end.
    ///
    /// # Panics
    /// When it is not taken or does not end.
    pub fn run(&self, request: &JobRequest) -> Job {
        let answer = self.post("/v1/jobs?wait=60", request);
        assert!((200..300).contains(&answer.status), "HTTP {}: {}\n{}", answer.status, answer.text(), self.log());
        let job: Job = answer.json();
        if job.state == JobState::Ended { job } else { self.wait(&job.id) }
    }

    /// A job as it is now.
    pub fn job(&self, id: &str) -> Job {
        self.get(&format!("/v1/jobs/{id}")).json()
    }

    /// Waits for a job's end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn wait(&self, id: &str) -> Job {
        self.wait_for(id, |job| job.state == JobState::Ended)
    }

    /// Waits until a job is as wanted.
    ///
    /// # Panics
    /// When that does not come.
    pub fn wait_for(&self, id: &str, wanted: impl Fn(&Job) -> bool) -> Job {
        let deadline = Instant::now() + patience(Duration::from_secs(60));
        loop {
            let job = self.job(id);
            if wanted(&job) {
                return job;
            }
            assert!(Instant::now() < deadline, "the job stays as it is: {job:#?}\n{}", self.log());
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Sends a signal to the service and waits for its end; its launcher has to notice by itself.
    pub fn kill(&mut self, signal: Signal) -> WaitStatus {
        let pid = self.pid.take().expect("the service runs");
        kill(pid, signal).expect("it is our child");
        wait_for_end(pid).unwrap_or_else(|| panic!("the service does not end after {signal}\n{}", self.log()))
    }

    /// Waits for the service's end, which something else brings about.
    ///
    /// # Panics
    /// When it does not end.
    pub fn wait_for_end(&mut self) -> WaitStatus {
        let pid = self.pid.take().expect("the service runs");
        wait_for_end(pid).unwrap_or_else(|| panic!("the service does not end\n{}", self.log()))
    }

    /// The processes of the instance that live, though the service was killed.
    pub fn processes_left(&self) -> Vec<host::Process> {
        reap_orphans();
        host::descendants_but_others(process_control::getpid().as_raw_nonzero().get())
    }

    /// Stops the service as its supervisor would, and checks that nothing is left.
    ///
    /// # Panics
    /// When something is left; the message says what.
    pub fn stop(&mut self) {
        if self.pid.is_some() {
            let status = self.kill(Signal::SIGTERM);
            assert!(matches!(status, WaitStatus::Exited(_, 0)), "the service stopped with {status:?}\n{}", self.log());
        }
        let left = self.what_is_left();
        assert!(left.is_empty(), "the service left behind:\n{}\n{}", left.join("\n"), self.log());
    }

    /// What of the instance is on the host though it does not run; looks again until the kernel had its time.
    pub fn what_is_left(&self) -> Vec<String> {
        let deadline = Instant::now() + patience(STOP_TIME);
        loop {
            let left = self.look_for_leftovers();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn look_for_leftovers(&self) -> Vec<String> {
        let processes = self.processes_left().into_iter();
        let mut left: Vec<String> = processes.map(|process| format!("process {process:?}")).collect();
        left.extend(host::mounts_below(self.folder.path()).into_iter().map(|mount| format!("mount {mount}")));
        let cgroups = host::cgroups_of_instance(&self.state()).into_iter();
        left.extend(cgroups.map(|group| format!("control group {}", group.display())));
        left.extend(host::links_of_instance(&self.state()).into_iter().map(|link| format!("interface {link}")));
        if self.socket().exists() {
            left.push(format!("socket {}", self.socket().display()));
        }
        left
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- log of the service\n{}", self.log());
            if let Some(pid) = self.pid.take() {
                kill(pid, Signal::SIGTERM).ok();
                wait_for_end(pid);
            }
            self.look_for_leftovers();
        } else {
            self.stop();
        }
    }
}

/// Waits for a child's end, and kills it when that does not come in time: then there is no status.
fn wait_for_end(pid: Pid) -> Option<WaitStatus> {
    let deadline = Instant::now() + patience(STOP_TIME);
    while Instant::now() < deadline {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => thread::sleep(LOOK_EVERY),
            Ok(status) => return Some(status),
            Err(_) => return None,
        }
    }
    kill(pid, Signal::SIGKILL).ok();
    waitpid(pid, None).ok();
    None
}

/// Takes the status of what ended and was handed to us, so that only what lives is seen.
fn reap_orphans() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

/// A request for a command in the `busybox` image.
pub fn command(argv: &[&str]) -> JobRequest {
    JobRequest {
        image: "busybox".to_owned(),
        argv: argv.iter().map(|&argument| argument.to_owned()).collect(),
        ..JobRequest::default()
    }
}

/// A request for a line of shell in the `busybox` image.
pub fn shell(line: &str) -> JobRequest {
    JobRequest { image: "busybox".to_owned(), shell: Some(line.to_owned()), ..JobRequest::default() }
}

/// Why the job ended.
///
/// # Panics
/// When it did not.
pub fn kind(job: &Job) -> EndingKind {
    job.ending.as_ref().unwrap_or_else(|| panic!("the job has not ended: {job:#?}")).kind
}

/// What the job wrote to its standard output.
///
/// # Panics
/// When it is not text, or the job has not ended.
pub fn stdout(job: &Job) -> &str {
    let output = job.stdout.as_ref().unwrap_or_else(|| panic!("the job has no output: {job:#?}"));
    output.text.as_deref().unwrap_or_else(|| panic!("the output is not text: {job:#?}"))
}

/// What the job wrote to its standard error.
///
/// # Panics
/// When it is not text, or the job has not ended.
pub fn stderr(job: &Job) -> &str {
    let output = job.stderr.as_ref().unwrap_or_else(|| panic!("the job has no output: {job:#?}"));
    output.text.as_deref().unwrap_or_else(|| panic!("the output is not text: {job:#?}"))
}
