//! `registries.toml`: which registries may be talked to, their mirrors, and who the service is there. Read once, before
//! the service gives up its privileges, so that only root needs to be able to read the secrets.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ampoule_engine::image::registry::{Credentials, HostConfig, HostsError, RegistryConfig, SECRET_BYTES_MAX};
use serde::Deserialize;

/// Longest file of registries, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    only: Option<Vec<String>>,
    registry: BTreeMap<String, WrittenHost>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenHost {
    mirrors: Vec<String>,
    insecure: Option<bool>,
    certificates: Option<PathBuf>,
    realms: Vec<String>,
    username: Option<String>,
    password_file: Option<PathBuf>,
    password_env: Option<String>,
    identity_token_file: Option<PathBuf>,
    identity_token_env: Option<String>,
    chunk_bytes: Option<u64>,
    connections: Option<u32>,
}

/// Why the registries cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    /// A file cannot be read.
    #[error("could not read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not understood; the source names the key.
    #[error("could not understand {file}")]
    Parse {
        /// The file.
        file: PathBuf,
        /// Line, key and what was expected.
        source: Box<toml::de::Error>,
    },
    /// A mirror is none.
    #[error("could not use {file}")]
    Hosts {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: HostsError,
    },
    /// The settings of one registry cannot be used.
    #[error("the registry `{registry}` in {file} cannot be used: {problem}")]
    Host {
        /// The file.
        file: PathBuf,
        /// The registry.
        registry: String,
        /// What is wrong.
        problem: String,
    },
}

/// Reads the file, and the secrets that it points to.
///
/// # Errors
/// A file that cannot be read or has an unknown key, a mirror that is no address, a login that is not whole.
pub fn load(file: &Path) -> Result<RegistryConfig, RegistriesError> {
    let read = |source| RegistriesError::Read { file: file.to_owned(), source };
    let text = bounded(file, FILE_BYTES_MAX).map_err(read)?;
    let written: Written = toml::from_str(&text)
        .map_err(|source| RegistriesError::Parse { file: file.to_owned(), source: Box::new(source) })?;
    let mut hosts = BTreeMap::new();
    for (registry, host) in written.registry {
        let wrong =
            |problem: String| RegistriesError::Host { file: file.to_owned(), registry: registry.clone(), problem };
        let host = mean(host).map_err(wrong)?;
        hosts.insert(registry, host);
    }
    let config = RegistryConfig { only: written.only, hosts };
    config.check().map_err(|source| RegistriesError::Hosts { file: file.to_owned(), source })?;
    Ok(config)
}

fn mean(written: WrittenHost) -> Result<HostConfig, String> {
    if written.chunk_bytes.is_some_and(|bytes| bytes < 64 * 1024) {
        return Err("`chunk_bytes` must be at least 65536".to_owned());
    }
    let password = secret("password", written.password_file.as_deref(), written.password_env.as_deref())?;
    let identity =
        secret("identity_token", written.identity_token_file.as_deref(), written.identity_token_env.as_deref())?;
    let credentials = match (written.username, password, identity) {
        (None, None, None) => None,
        (None, None, Some(token)) => Some(Credentials::Identity(token)),
        (Some(username), Some(password), None) => Some(Credentials::Password { username, password }),
        _ => {
            let problem =
                "a login is `username` with `password_file` or `password_env`, or an `identity_token_…` alone";
            return Err(problem.to_owned());
        }
    };
    Ok(HostConfig {
        mirrors: written.mirrors,
        insecure: written.insecure,
        certificates: written.certificates,
        realms: written.realms,
        credentials,
        chunk_bytes: written.chunk_bytes,
        connections: written.connections.map(|count| count as usize),
    })
}

/// A secret, from where it is kept. Never in the file itself: those are shown, copied and committed.
fn secret(key: &str, file: Option<&Path>, variable: Option<&str>) -> Result<Option<String>, String> {
    let text = match (file, variable) {
        (None, None) => return Ok(None),
        (Some(file), None) => {
            let unreadable = |error: io::Error| format!("`{key}_file` {}: {error}", file.display());
            bounded(file, SECRET_BYTES_MAX as u64).map_err(unreadable)?
        }
        (None, Some(variable)) => {
            std::env::var(variable).map_err(|error| format!("`{key}_env` {variable}: {error}"))?
        }
        (Some(_), Some(_)) => return Err(format!("`{key}_file` and `{key}_env` exclude each other")),
    };
    let text = text.trim_end_matches(['\r', '\n']).to_owned();
    if text.is_empty() { Err(format!("the secret of `{key}` is empty")) } else { Ok(Some(text)) }
}

fn bounded(file: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?.take(bytes_max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > bytes_max {
        return Err(io::Error::other(format!("it is longer than {bytes_max} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RegistryConfig, String> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("secret"), "hunter2\n").expect("a file");
        let file = folder.path().join("registries.toml");
        std::fs::write(&file, text.replace("FOLDER", &folder.path().to_string_lossy())).expect("a file");
        load(&file).map_err(|error| crate::problem::chain(&error))
    }

    #[test]
    fn what_is_written_is_what_is_meant() {
        let config = read(
            "only = ['docker.io', 'registry.lan:5000']\n[registry.'docker.io']\nmirrors = ['https://mirror.lan']\n\
             username = 'me'\npassword_file = 'FOLDER/secret'\n\
             [registry.'registry.lan:5000']\ninsecure = true\nrealms = ['auth.lan']\nidentity_token_file = 'FOLDER/secret'\n",
        )
        .expect("loads");
        let hub = &config.hosts["docker.io"];
        let password = Credentials::Password { username: "me".into(), password: "hunter2".into() };
        assert_eq!((hub.mirrors.len(), hub.credentials.as_ref()), (1, Some(&password)));
        let lan = &config.hosts["registry.lan:5000"];
        assert_eq!(
            (lan.insecure, lan.credentials.as_ref()),
            (Some(true), Some(&Credentials::Identity("hunter2".into())))
        );
        assert_eq!(config.only.map(|only| only.len()), Some(2));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_name() {
        for (text, named) in [
            ("[registry.'a']\nmirror = []\n", "mirror"),
            ("[registry.'a']\nmirrors = ['x']\n", "`x`"),
            ("[registry.'a']\nusername = 'me'\n", "`a`"),
            ("[registry.'a']\nusername = 'me'\npassword_file = '/no/such/file'\n", "/no/such/file"),
            (
                "[registry.'a']\nusername = 'me'\npassword_env = 'AMPOULE_NO_SUCH_VARIABLE'\n",
                "AMPOULE_NO_SUCH_VARIABLE",
            ),
            ("[registry.'a']\nchunk_bytes = 1\n", "chunk_bytes"),
        ] {
            let error = read(text).expect_err("refused");
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
