//! The service's side with a launcher and a pid 1 that are played.

use std::fs::{self, File};
use std::os::fd::OwnedFd;

use super::*;
use crate::isolation::cgroup::{MeterTerms, Version};
use crate::sandbox::handshake::{CommandStatus, Finished, InitReply, InitRequest, Lent, pair};
use crate::spec::{Command as SpecCommand, Ending, Figures, Frame, Limits, Network, Phases};

/// How long something that comes over a socket may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client, and the launcher's end of its conversation.
fn stage() -> (Client, OwnedFd) {
    let (ours, theirs) = pair().expect("sockets can be made");
    let process = std::process::Command::new("true").spawn().expect("true can be run");
    let client = Client::connect(LauncherHandle { socket: ours, process }).expect("the socket can be waited on");
    (client, theirs)
}

fn spec() -> SandboxSpec {
    let layer = LayerId::parse(&"a".repeat(64)).expect("this is a digest");
    let (user, hostname) = ("0".to_owned(), "ampoule".to_owned());
    let frame = Frame { layers: vec![layer], writable: Vec::new(), user, hostname, network: Network::None };
    let command = SpecCommand {
        argv: vec!["/bin/true".to_owned()],
        env: Vec::new(),
        cwd: "/".to_owned(),
        artifacts: crate::spec::Artifacts::default(),
    };
    let limits = Limits {
        memory_bytes: 1 << 26,
        cpu_milli: 1000,
        pids: 8,
        cpu_time_ms: 1000,
        wall_time_ms: 1000,
        open_files: 64,
        file_bytes: 1 << 20,
    };
    SandboxSpec { id: "1".to_owned(), frame, command, limits }
}

/// Lends a sandbox for this spec; returns pid 1's end of its conversation once the client has the other.
async fn lend(client: &Client, launcher: &OwnedFd, number: u64) -> OwnedFd {
    let (control, pid_1) = pair().expect("sockets can be made");
    let folder = tempfile::tempdir().expect("a folder");
    let cpu = "usage_usec 70\nuser_usec 70\nsystem_usec 0\nthrottled_usec 0\n";
    let texts = [cpu, "oom_kill 0\n", "max 0\n", "4096\n"];
    let counters = texts.map(|text| {
        fs::write(folder.path().join("counter"), text).expect("the folder can be written");
        let counter = File::open(folder.path().join("counter")).expect("it was just written");
        fs::remove_file(folder.path().join("counter")).expect("it was just written");
        counter
    });
    let SandboxSpec { frame, limits, .. } = spec();
    let lent = Reply::Lent(Box::new(Lent { number, frame, limits, meter: MeterTerms::fresh(Version::V2) }));
    let mut descriptors = vec![control.as_fd()];
    descriptors.extend(counters.iter().map(AsFd::as_fd));
    send(launcher, &lent, &descriptors).expect("there is room");
    let arrived = async {
        while client.census().warm == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, arrived).await.expect("the client takes it in");
    pid_1
}

fn hear<M: serde::de::DeserializeOwned>(socket: &OwnedFd) -> M {
    let heard = receive::<M>(socket, &mut message_buffer()).expect("a message is there");
    heard.expect("the conversation goes on").0
}

fn exits(code: i32) -> InitReply {
    InitReply::Finished(Finished {
        status: CommandStatus::Exited(code),
        wall_limit: false,
        disk_full: false,
        detail: String::new(),
        left_out: Vec::new(),
        wall_us: 5,
        exec_us: 1,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_goes_straight_to_pid_1_and_its_end_comes_straight_back() {
    let (client, launcher) = stage();
    let pid_1 = lend(&client, &launcher, 7).await;
    let running = client.launch(spec(), Input::default()).await.expect("it is launched");
    assert!(matches!(hear(&pid_1), InitRequest::Start(start) if start.argv == ["/bin/true"]));
    send(&pid_1, &exits(3), &[]).expect("the service listens");
    let exit = running.exit.await.expect("it ends");
    assert_eq!(exit.ending, Ending::Exited(3));
    assert_eq!((exit.figures.cpu_user_us, exit.figures.memory_peak_bytes, exit.phases.warm), (70, 4096, true));
    let told =
        std::iter::repeat_with(|| hear::<Request>(&launcher)).find(|told| !matches!(told, Request::Follow { .. }));
    assert!(matches!(told, Some(Request::Done { number: 7, was_used: true })), "{told:?}");
    assert_eq!((client.census().warm, client.census().live, client.census().warm_hits), (0, 0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_pid_1_dies_without_a_word_the_launcher_tells_the_end() {
    let (client, launcher) = stage();
    let pid_1 = lend(&client, &launcher, 7).await;
    let running = client.launch(spec(), Input::default()).await.expect("it is launched");
    drop(pid_1);
    let exit = tokio::spawn(running.exit);
    let Request::Follow { number: 7, token, .. } = hear(&launcher) else { panic!("the launcher is asked to follow") };
    let (figures, phases) = (Figures::default(), Phases::default());
    let told = Exit { ending: Ending::OutOfMemory, detail: String::new(), figures, phases, left_out: Vec::new() };
    send(&launcher, &Reply::Exit { token, exit: told }, &[]).expect("there is room");
    assert_eq!(exit.await.expect("no panic").expect("it ends").ending, Ending::OutOfMemory);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_goes_to_the_launcher_and_names_the_ending() {
    let (client, launcher) = stage();
    let pid_1 = lend(&client, &launcher, 7).await;
    let running = client.launch(spec(), Input::default()).await.expect("it is launched");
    (running.stop)(StopReason::Cancelled);
    let Request::Follow { token, .. } = hear(&launcher) else { panic!("the launcher must know of it first") };
    assert!(matches!(hear(&launcher), Request::Stop { token: it, reason: StopReason::Cancelled } if it == token));
    let killed = InitReply::Finished(Finished { status: CommandStatus::Signaled(9), ..finished(exits(0)) });
    send(&pid_1, &killed, &[]).expect("the service listens");
    assert_eq!(running.exit.await.expect("it ends").ending, Ending::Cancelled);
}

fn finished(reply: InitReply) -> Finished {
    let InitReply::Finished(finished) = reply else { panic!("{reply:?}") };
    finished
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_nobody_waits_for_is_left_to_the_launcher() {
    let (client, launcher) = stage();
    let _pid_1 = lend(&client, &launcher, 7).await;
    drop(client.launch(spec(), Input::default()).await.expect("it is launched"));
    assert!(matches!(hear(&launcher), Request::Follow { number: 7, .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_with_other_limits_gives_the_sandbox_back_to_be_limited() {
    let (client, launcher) = stage();
    let _pid_1 = lend(&client, &launcher, 7).await;
    let mut other = spec();
    other.limits.memory_bytes *= 2;
    let _running = client.launch(other, Input::default()).await.expect("it is launched");
    assert!(matches!(hear(&launcher), Request::Launch { lent: Some(7), .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_sandbox_is_passed_over() {
    let (client, launcher) = stage();
    drop(lend(&client, &launcher, 7).await);
    let _running = client.launch(spec(), Input::default()).await.expect("it is launched");
    assert!(matches!(hear(&launcher), Request::Done { number: 7, was_used: false }));
    assert!(matches!(hear(&launcher), Request::Launch { lent: None, .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_is_recalled_is_given_back() {
    let (client, launcher) = stage();
    let _pid_1 = lend(&client, &launcher, 7).await;
    send(&launcher, &Reply::Recall { number: 7 }, &[]).expect("there is room");
    assert!(matches!(hear(&launcher), Request::Done { number: 7, was_used: false }));
    assert_eq!(client.census().warm, 0);
}
