//! The peers: each runs `busybox true` (or `echo hello`) in the same root and reads its output to the end.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ampoule_client::types::{Job as AmpouleJob, JobRequest};
use ampoule_tests::service::command as busybox_command;
use ampoule_tests::{Options, Service};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::docker;
use crate::measure::{Job, Peer};

/// Clients at once where throughput is measured.
const MANY: u32 = 8;

/// Whose jobs can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerName {
    Ampoule,
    Crun,
    Runc,
    Bubblewrap,
    Docker,
    Podman,
}

/// Every peer that is wanted (all, when none is named) and that this machine has. One that is missing is said, not
/// left out in silence.
pub(crate) fn all(folder: &Path, root: &Path, wanted: &[PeerName]) -> Result<Vec<Peer>> {
    let is_wanted = |name: PeerName| wanted.is_empty() || wanted.contains(&name);
    let mut peers = vec![bare(root)];
    if is_wanted(PeerName::Ampoule) {
        peers.extend(ampoule()?);
    }
    for (wish, name, jobs) in [(PeerName::Crun, "crun", 80), (PeerName::Runc, "runc", 30)] {
        if is_wanted(wish) {
            peers.extend(runtime(name, jobs, folder, root)?);
        }
    }
    if is_wanted(PeerName::Bubblewrap) {
        peers.extend(bubblewrap(root));
    }
    if is_wanted(PeerName::Docker) {
        peers.extend(docker::peers(folder)?);
    }
    if is_wanted(PeerName::Podman) {
        peers.extend(podman(folder)?);
    }
    Ok(peers)
}

fn peer(
    name: &'static str,
    isolation: &'static str,
    jobs: u32,
    client: impl Fn() -> Result<Job> + Sync + 'static,
) -> Peer {
    Peer { name, isolation, jobs, clients: 1, paced: false, client: Box::new(client), keep: None }
}

/// A peer that starts a process a job.
pub(crate) fn program(
    name: &'static str,
    isolation: &'static str,
    jobs: u32,
    command: impl Fn() -> Command + Send + Sync + 'static,
) -> Peer {
    let command = Arc::new(command);
    peer(name, isolation, jobs, move || {
        let command = Arc::clone(&command);
        Ok(Box::new(move || run_to_end(&mut command())))
    })
}

fn run_to_end(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The floor: the same program started with vfork and exec, waited for, without any isolation.
fn bare(root: &Path) -> Peer {
    let busybox = root.join("bin/busybox");
    let job = move || {
        let busybox = busybox.clone();
        let job: Job = Box::new(move || {
            let mut command = Command::new(&busybox);
            // The standard library starts it by posix_spawn, which is vfork and exec.
            let status = command.arg("true").stdin(Stdio::null()).status()?;
            ensure!(status.success(), "{status}");
            Ok(())
        });
        Ok(job)
    };
    Peer { paced: true, ..peer("bare vfork+exec+wait", "none", 600, job) }
}

fn ampoule() -> Result<Vec<Peer>> {
    let policies = std::env::var("AMPOULE_BENCH_POLICIES").ok().map_or_else(default_policies, Ok)?;
    let options = Options { arguments: vec!["--policies".to_owned(), policies], ..Options::default() };
    let service = Arc::new(Service::with(options));
    let isolation = "all namespaces, caps 0, seccomp, cgroup, ro root, policy, durable";
    let client = |service: &Arc<Service>, request: JobRequest| {
        let service = Arc::clone(service);
        move || -> Result<Job> {
            let mut connection = service.connect();
            let body = serde_json::to_vec(&request)?;
            Ok(Box::new(move || {
                let headers = [("content-type", "application/json")];
                let job: AmpouleJob = connection.send("POST", "/v1/jobs?wait=60", &headers, &body)?.json();
                let code = job.ending.as_ref().and_then(|ending| ending.exit_code);
                ensure!(code == Some(0), "{job:?}");
                Ok(())
            }))
        }
    };
    let run_true = || busybox_command(&["/bin/true"]);
    let hello = || busybox_command(&["/bin/echo", "hello"]);
    let mut peers = vec![
        Peer { paced: true, ..peer("ampoule HTTP, warm", isolation, 600, client(&service, run_true())) },
        Peer { paced: true, ..peer("ampoule HTTP, warm, hello", isolation, 600, client(&service, hello())) },
        peer("ampoule HTTP, 1 connection", isolation, 1500, client(&service, run_true())),
        Peer { clients: MANY, ..peer("ampoule HTTP, 8 connections", isolation, 3000, client(&service, run_true())) },
    ];
    peers[0].keep = Some(Box::new(service));
    Ok(peers)
}

fn default_policies() -> Result<String> {
    let file = Path::new("policies/policies.toml").canonicalize().context("run `make policies`, in the workspace")?;
    Ok(file.to_string_lossy().into_owned())
}

fn is_there(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    let there = found.is_ok_and(|status| status.success());
    if !there {
        eprintln!("{program} is not installed, so it is not measured\nhint: setup/install.sh bench");
    }
    there
}

/// An OCI runtime, called as an engine calls it, with a configuration as strict as ours.
fn runtime(name: &'static str, jobs: u32, folder: &Path, root: &Path) -> Result<Vec<Peer>> {
    if !is_there(name) {
        return Ok(Vec::new());
    }
    let bundle = folder.join(format!("bundle-{name}"));
    fs::create_dir_all(&bundle)?;
    fs::write(bundle.join("config.json"), runtime_configuration(root)?)?;
    let numbers = Arc::new(AtomicU64::new(0));
    let make = move || {
        let id = format!("bench-{}", numbers.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new(name);
        command.arg("--root").arg(bundle.join("state")).args(["run", "--bundle"]).arg(&bundle).arg(id);
        command
    };
    let isolation = "all namespaces, caps 0, seccomp, cgroup, ro root";
    let make = Arc::new(make);
    let (one, many) = (Arc::clone(&make), make);
    Ok(vec![
        program(name, isolation, jobs, move || one()),
        Peer { clients: MANY, ..program(name, isolation, 2 * jobs, move || many()) },
    ])
}

/// The calls that our own filter lets through, if only with some arguments.
fn allowed_calls() -> Result<Vec<String>> {
    let filter: serde_json::Value = serde_json::from_str(include_str!("../../engine/src/isolation/seccomp.json"))?;
    let calls = filter["calls"].as_array().context("the filter lists calls")?.iter();
    let allowed = calls.filter(|call| call["verdict"] == "allow" || call["cases"].is_array());
    Ok(allowed.filter_map(|call| call["name"].as_str().map(str::to_owned)).collect())
}

fn runtime_configuration(root: &Path) -> Result<String> {
    let namespaces: Vec<_> = ["user", "pid", "mount", "ipc", "uts", "network"]
        .into_iter()
        .map(|kind| serde_json::json!({ "type": kind }))
        .collect();
    let mapping = serde_json::json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    let tmpfs = ["nosuid", "nodev", "size=64m"];
    let seccomp = serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": allowed_calls()?, "action": "SCMP_ACT_ALLOW" }],
    });
    let configuration = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": { "uid": 0, "gid": 0 }, "args": ["/bin/true"],
            "env": ["PATH=/bin"], "cwd": "/", "noNewPrivileges": true,
            "capabilities": { "bounding": [], "effective": [], "permitted": [] },
        },
        "root": { "path": root, "readonly": true },
        "hostname": "bench",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": tmpfs },
        ],
        "linux": {
            "namespaces": namespaces, "uidMappings": mapping, "gidMappings": mapping,
            "resources": {
                "memory": { "limit": 268_435_456u64 }, "pids": { "limit": 128 },
                "cpu": { "quota": 100_000, "period": 100_000 },
            },
            "seccomp": seccomp,
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/sys", "/proc/irq", "/proc/bus"],
        },
    });
    Ok(configuration.to_string())
}

fn bubblewrap(root: &Path) -> Vec<Peer> {
    if !is_there("bwrap") {
        return Vec::new();
    }
    let root = root.to_path_buf();
    let make = Arc::new(move || {
        let mut command = Command::new("bwrap");
        command.args(["--unshare-all", "--unshare-user", "--new-session", "--die-with-parent", "--cap-drop", "ALL"]);
        command.arg("--ro-bind").arg(&root).arg("/");
        command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--clearenv", "/bin/true"]);
        command
    });
    let isolation = "all namespaces, caps 0, ro root; no cgroup, no seccomp";
    let (one, many) = (Arc::clone(&make), make);
    vec![
        program("bubblewrap", isolation, 150, move || one()),
        Peer { clients: MANY, ..program("bubblewrap", isolation, 300, move || many()) },
    ]
}

fn podman(folder: &Path) -> Result<Vec<Peer>> {
    if !is_there("podman") {
        return Ok(Vec::new());
    }
    let place = folder.join("podman");
    let podman = move || {
        let mut command = Command::new("podman");
        command.arg("--root").arg(place.join("root")).arg("--runroot").arg(place.join("run"));
        command.args(["--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=crun"]);
        command
    };
    let archive = folder.join("image.tar");
    fs::write(&archive, ampoule_tests::archive::busybox())?;
    run_to_end(podman().arg("import").arg(&archive).arg("busybox"))?;
    let make = Arc::new(move || {
        let mut command = podman();
        command.args(["run", "--rm", "--network=none", "--read-only", "--cap-drop=all", "--memory=256m"]);
        // The default asks for more than what a machine without CAP_SYS_RESOURCE gives.
        command.args(["--pids-limit=128", "--cpus=1", "--ulimit=nproc=1024:1024"]);
        command.args(["--ulimit=nofile=1024:1024", "busybox", "/bin/true"]);
        command
    });
    let isolation = "namespaces but user, caps 0, seccomp, cgroup, ro root";
    let (one, many) = (Arc::clone(&make), make);
    Ok(vec![
        program("podman", isolation, 10, move || one()),
        Peer { clients: MANY, ..program("podman", isolation, 24, move || many()) },
    ])
}
