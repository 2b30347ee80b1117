//! Docker as a peer: over its HTTP API and by its command line.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use ampoule_tests::docker::Daemon;
use ampoule_tests::http::Connection;
use anyhow::{Context, Result, ensure};

use crate::measure::{Job, Peer};
use crate::peers::program;

const IMAGE: &str = "busybox:bench";
const JSON: [(&str, &str); 1] = [("content-type", "application/json")];
const ISOLATION: &str = "namespaces but user, caps 0, seccomp, cgroup, ro root";

/// Docker's two ways in, each with one client and, over HTTP, with several.
pub(crate) fn peers(folder: &Path) -> Result<Vec<Peer>> {
    let is_there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !is_there("dockerd") || !is_there("docker") {
        eprintln!("docker is not installed, so it is not measured\nhint: setup/install.sh bench");
        return Ok(Vec::new());
    }
    let daemon = Arc::new(Daemon::start(&folder.join("docker"))?);
    let socket = daemon.socket();
    let target = "/images/create?fromSrc=-&repo=busybox&tag=bench";
    let archive = ampoule_tests::archive::busybox();
    let answer = Connection::open(&socket)?.send("POST", target, &[("content-type", "application/x-tar")], &archive)?;
    ensure!(answer.status == 200, "{}", answer.text());

    let over_http = |jobs, clients| {
        let socket = socket.clone();
        Peer {
            name: "docker API",
            isolation: ISOLATION,
            jobs,
            clients,
            paced: false,
            client: Box::new(move || client(&socket)),
            keep: None,
        }
    };
    let host = format!("unix://{}", socket.display());
    let by_cli = program("docker CLI", ISOLATION, 8, move || {
        let mut command = Command::new("docker");
        command.args(["-H", &host, "run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL"]);
        command.args(["--security-opt=no-new-privileges", "--memory=256m", "--pids-limit=128", "--cpus=1"]);
        command.args(["--tmpfs=/tmp", IMAGE, "/bin/true"]);
        command
    });
    Ok(vec![Peer { keep: Some(Box::new(daemon)), ..over_http(12, 1) }, over_http(40, 8), by_cli])
}

/// Create, start, wait, read the output, remove: what a client does that wants what one request to us gives.
fn client(socket: &Path) -> Result<Job> {
    let mut connection = Connection::open(socket)?;
    let body = serde_json::json!({
        "Image": IMAGE, "Cmd": ["/bin/true"], "NetworkDisabled": true,
        "HostConfig": {
            "NetworkMode": "none", "ReadonlyRootfs": true, "CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges"],
            "Memory": 268_435_456u64, "PidsLimit": 128, "NanoCpus": 1_000_000_000u64, "Tmpfs": { "/tmp": "" },
        },
    })
    .to_string();
    Ok(Box::new(move || {
        let mut ask = |method, target: &str, body: &[u8]| -> Result<Vec<u8>> {
            let answer = connection.send(method, target, &JSON, body)?;
            ensure!(answer.status < 400, "{method} {target}: {} {}", answer.status, answer.text());
            Ok(answer.body)
        };
        let made: serde_json::Value = serde_json::from_slice(&ask("POST", "/containers/create", body.as_bytes())?)?;
        let id = made["Id"].as_str().context("docker gave no id")?.to_owned();
        ask("POST", &format!("/containers/{id}/start"), b"")?;
        let ended: serde_json::Value = serde_json::from_slice(&ask("POST", &format!("/containers/{id}/wait"), b"")?)?;
        ensure!(ended["StatusCode"] == 0, "{ended}");
        ask("GET", &format!("/containers/{id}/logs?stdout=1&stderr=1"), b"")?;
        ask("DELETE", &format!("/containers/{id}"), b"")?;
        Ok(())
    }))
}
