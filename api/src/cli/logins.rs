//! Who the user is to registries, as Docker's `config.json` says it: with the logins in it, or with the helpers that it
//! names. Read here, on the user's side; the service is told for one request only.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ampoule_client::types::RegistryLogin;
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// Longest file of logins, and longest answer of a helper, in bytes.
const BYTES_MAX: u64 = 1024 * 1024;
/// How long a helper may take; some ask a cloud.
const HELPER_TIME: Duration = Duration::from_secs(30);
/// How often it is looked whether a helper has ended.
const LOOK: Duration = Duration::from_millis(5);
/// What Docker calls its own registry in the file.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// What a helper says instead of a user name when the secret is a refresh token.
const TOKEN_USER: &str = "<token>";

/// What of Docker's file is used.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Written {
    auths: BTreeMap<String, RegistryLogin>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// The login for a registry (`docker.io`, `host:5000`), if the user has one.
///
/// # Errors
/// A file that is there and cannot be read, or a helper that fails.
pub(super) fn find(registry: &str) -> Result<Option<RegistryLogin>> {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    let Some(folder) = folder.or_else(home) else { return Ok(None) };
    let file = folder.join("config.json");
    let text = match File::open(&file) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        opened => {
            let mut text = String::new();
            let about = || format!("could not read {}", file.display());
            opened.with_context(about)?.take(BYTES_MAX).read_to_string(&mut text).with_context(about)?;
            text
        }
    };
    // What is wrong is told without the text, which holds secrets.
    let written: Written = serde_json::from_str(&text).map_err(|error| {
        anyhow::anyhow!("{} is not JSON as Docker writes it, see line {}", file.display(), error.line())
    })?;
    look_up(&written, registry)
}

fn look_up(written: &Written, registry: &str) -> Result<Option<RegistryLogin>> {
    let server = if registry == "docker.io" { HUB_KEY } else { registry };
    let helper = written.cred_helpers.get(server).or_else(|| written.cred_helpers.get(registry));
    let store = Some(&written.creds_store).filter(|store| !store.is_empty());
    if let Some(name) = helper.or(store)
        && let Some(login) = ask(name, server)?
    {
        return Ok(Some(login));
    }
    let login = written.auths.iter().find(|(key, _)| host_of(key) == host_of(server)).map(|(_, login)| login.clone());
    Ok(login.filter(|login| *login != RegistryLogin::default()))
}

/// `https://index.docker.io/v1/` and `index.docker.io` are the same registry.
fn host_of(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    key.split('/').next().unwrap_or(key)
}

/// Asks `docker-credential-NAME`; `None` when it knows no login.
fn ask(name: &str, server: &str) -> Result<Option<RegistryLogin>> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
        bail!("`{}` is not the name of a credential helper", super::table::plain(name));
    }
    let program = format!("docker-credential-{name}");
    let about = || format!("could not ask {program} for a login");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(about)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input has its own reason, and says it.
        let _ = stdin.write_all(server.as_bytes());
    }
    let output = child.stdout.take();
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        output.map(|output| output.take(BYTES_MAX).read_to_end(&mut bytes)).transpose().map(|_| bytes)
    });
    let deadline = Instant::now() + HELPER_TIME;
    let status = loop {
        match child.try_wait().with_context(about)? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                // It is gone when this fails.
                let _ = child.kill();
                let _ = child.wait();
                bail!("{program} did not answer within {} s", HELPER_TIME.as_secs());
            }
            None => thread::sleep(LOOK),
        }
    };
    let bytes = reader.join().map_err(|_| anyhow::anyhow!("{program} could not be read"))?.with_context(about)?;
    if !status.success() {
        // So all helpers say that they know no login; it is in their protocol, in these words.
        let said = String::from_utf8_lossy(&bytes);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        let line = said.lines().next().unwrap_or_default();
        bail!("{program} failed: {}", super::table::plain(&line.chars().take(200).collect::<String>()));
    }
    let helped: Helped = serde_json::from_slice(&bytes).map_err(|_| anyhow::anyhow!("{program} gave no login"))?;
    Ok(Some(if helped.username == TOKEN_USER {
        RegistryLogin { identitytoken: helped.secret, ..RegistryLogin::default() }
    } else {
        RegistryLogin { username: helped.username, password: helped.secret, ..RegistryLogin::default() }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, registry: &str) -> Option<RegistryLogin> {
        look_up(&serde_json::from_str(text).expect("JSON"), registry).expect("no helper fails")
    }

    #[test]
    fn a_login_is_found_under_every_name_that_docker_gives_a_registry() {
        let text = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"aHVi"},"ghcr.io":{"auth":"Z2hjcg=="},
            "https://registry.lan:5000":{"auth":"bGFu","identitytoken":"t"},"empty.lan":{}},"HttpHeaders":{"x":"y"}}"#;
        let auth = |registry: &str| found(text, registry).map(|login| login.auth);
        assert_eq!(auth("docker.io").as_deref(), Some("aHVi"));
        assert_eq!(auth("ghcr.io").as_deref(), Some("Z2hjcg=="));
        assert_eq!(auth("registry.lan:5000").as_deref(), Some("bGFu"));
        assert_eq!(auth("registry.lan"), None);
        assert_eq!(auth("empty.lan"), None);
    }

    #[test]
    fn a_helper_is_no_path() {
        let text = r#"{"credHelpers":{"x.lan":"../../bin/sh"}}"#;
        assert!(look_up(&serde_json::from_str(text).expect("JSON"), "x.lan").is_err());
    }
}
