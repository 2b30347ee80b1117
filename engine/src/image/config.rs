//! The config of an image: what it is made of and how it wants to be run. Takes what Docker writes as well as OCI;
//! the bytes that came are what is kept and hashed.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::manifest::own_platform;
use crate::spec::LayerId;

/// How an image wants to be run.
#[derive(Clone, Debug, Default)]
pub struct ImageConfig {
    /// Environment variables in their order.
    pub env: Vec<(String, String)>,
    /// First part of the command.
    pub entrypoint: Vec<String>,
    /// Last part of the command.
    pub cmd: Vec<String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// Whom the command runs as.
    pub user: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Ports that it listens on, as in `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Paths that it wants to write to.
    pub volumes: Vec<String>,
    /// The signal that it wants to be stopped with, as in `SIGTERM`.
    pub stop_signal: Option<String>,
    /// Docker's health check, as it was written.
    pub healthcheck: Option<Box<RawValue>>,
    /// Docker's shell for commands in shell form.
    pub shell: Vec<String>,
    /// Docker's instructions for builds on top of it.
    pub on_build: Vec<String>,
}

/// One step that made an image, as its config tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Step {
    /// When, as it was written.
    #[serde(default)]
    pub created: Option<String>,
    /// The command.
    #[serde(default)]
    pub created_by: Option<String>,
    /// Who.
    #[serde(default)]
    pub author: Option<String>,
    /// A remark.
    #[serde(default)]
    pub comment: Option<String>,
    /// Whether it changed no file, so that there is no layer of it.
    #[serde(default, rename = "empty_layer", deserialize_with = "null_is_default")]
    pub is_empty: bool,
}

/// Where an image comes from, as its config tells it. Not kept in memory: some histories are long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Origin {
    /// Who made it.
    #[serde(default)]
    pub author: Option<String>,
    /// The kind of processor.
    #[serde(default)]
    pub architecture: String,
    /// The system.
    #[serde(default)]
    pub os: String,
    /// What kind of that kind of processor.
    #[serde(default)]
    pub variant: Option<String>,
    /// The steps that made it, oldest first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub history: Vec<Step>,
}

impl Origin {
    /// Reads the parts of a config that tell where the image comes from.
    pub(super) fn parse(bytes: &[u8]) -> Result<Origin, ConfigError> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The platform, as in `linux/amd64` or `linux/arm/v7`.
    pub fn platform(&self) -> String {
        let variant = self.variant.iter().filter(|variant| !variant.is_empty()).map(|variant| format!("/{variant}"));
        format!("{}/{}{}", self.os, self.architecture, variant.collect::<String>())
    }
}

/// A config that was read.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// When the image was made, as it says.
    pub(super) created: Option<String>,
    /// How it wants to be run.
    pub(super) run: ImageConfig,
    /// The diff ids of its layers, lowest first.
    pub(super) diff_ids: Vec<LayerId>,
}

/// Why a config is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is no JSON, or not of the right shape.
    #[error("it is not the config of an image")]
    Malformed(#[from] serde_json::Error),
    /// It is for other machines.
    #[error(
        "the image is for {found}, and this machine runs {}\nhint: save the image for this platform",
        own_platform()
    )]
    Platform {
        /// What it is for, as in `linux/arm64`.
        found: String,
    },
    /// A diff id is no SHA-256.
    #[error("one of its diff ids is not a digest")]
    DiffId(#[from] crate::spec::SpecError),
}

#[derive(Deserialize)]
struct Document {
    architecture: String,
    os: String,
    #[serde(default)]
    created: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    config: Run,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "null_is_default")]
    diff_ids: Vec<String>,
}

/// Docker writes `null` where it has nothing.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Run {
    #[serde(default, deserialize_with = "null_is_default")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    cmd: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    working_dir: String,
    #[serde(default, deserialize_with = "null_is_default")]
    user: String,
    #[serde(default, deserialize_with = "null_is_default")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_is_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "null_is_default")]
    volumes: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "null_is_default")]
    stop_signal: String,
    #[serde(default)]
    healthcheck: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "null_is_default")]
    shell: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    on_build: Vec<String>,
}

fn null_is_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(source: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(source)?.unwrap_or_default())
}

impl Config {
    /// Reads a config.
    pub(super) fn parse(bytes: &[u8]) -> Result<Config, ConfigError> {
        let document: Document = serde_json::from_slice(bytes)?;
        let found = format!("{}/{}", document.os, document.architecture);
        if found != own_platform() {
            return Err(ConfigError::Platform { found });
        }
        let diff_ids = document.rootfs.diff_ids.iter().map(|id| LayerId::parse(id)).collect::<Result<_, _>>()?;
        Ok(Config { created: document.created, run: document.config.into(), diff_ids })
    }

    /// The bytes of a config for an image of one layer of which nothing else is known. Nothing in it depends on the
    /// time: the same root file system is the same image.
    pub(super) fn for_root(diff_id: &LayerId) -> Vec<u8> {
        let (os, architecture) =
            own_platform().split_once('/').map(|(os, arch)| (os.to_owned(), arch.to_owned())).unwrap_or_default();
        let config = serde_json::json!({
            "architecture": architecture,
            "os": os,
            "config": { "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", diff_id.hex())] },
            "history": [{ "comment": "imported from a root file system" }],
        });
        config.to_string().into_bytes()
    }
}

impl From<Run> for ImageConfig {
    fn from(run: Run) -> ImageConfig {
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let variable = |text: &String| match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (text.clone(), String::new()),
        };
        ImageConfig {
            env: run.env.iter().filter(|text| !text.is_empty()).map(variable).collect(),
            entrypoint: run.entrypoint,
            cmd: run.cmd,
            working_dir: given(run.working_dir),
            user: given(run.user),
            labels: run.labels,
            exposed_ports: run.exposed_ports.into_keys().collect(),
            volumes: run.volumes.into_keys().collect(),
            stop_signal: given(run.stop_signal),
            healthcheck: run.healthcheck,
            shell: run.shell,
            on_build: run.on_build,
        }
    }
}

/// Whether these bytes are a config that could be run; for tests that feed it hostile bytes.
///
/// # Errors
/// Why they are not.
pub fn check(bytes: &[u8]) -> Result<ImageConfig, ConfigError> {
    Config::parse(bytes).map(|config| config.run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_extras_and_nulls_are_read() {
        let bytes = br#"{"architecture":"amd64","os":"linux","created":"2026-01-02T03:04:05Z","config":{
            "Env":["PATH=/bin","EMPTY=","BARE","A=b=c"],"Entrypoint":null,"Cmd":["sh"],"WorkingDir":"","User":"app",
            "Labels":{"b":"2","a":"1"},"ExposedPorts":{"80/tcp":{}},"Volumes":null,"StopSignal":"SIGINT",
            "Healthcheck":{"Test":["CMD","true"]},"Shell":["/bin/bash","-c"],"OnBuild":["RUN x"]},
            "rootfs":{"type":"layers","diff_ids":[]},"history":[],"moby.buildkit.buildinfo.v1":"x"}"#;
        let config = Config::parse(bytes).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(config.run.env, [pair("PATH", "/bin"), pair("EMPTY", ""), pair("BARE", ""), pair("A", "b=c")]);
        assert_eq!((config.run.entrypoint.len(), config.run.cmd.as_slice()), (0, &["sh".to_owned()][..]));
        assert_eq!((config.run.working_dir, config.run.user.as_deref()), (None, Some("app")));
        assert_eq!(config.run.exposed_ports, ["80/tcp"]);
        assert_eq!(config.run.healthcheck.unwrap().get(), r#"{"Test":["CMD","true"]}"#);
        assert_eq!(config.created.as_deref(), Some("2026-01-02T03:04:05Z"));
        assert!(Config::parse(br#"{"architecture":"amd64","os":"linux","config":null,"rootfs":{}}"#).is_ok());
    }

    #[test]
    fn the_history_is_read_with_its_empty_steps() {
        let bytes = br#"{"architecture":"arm","os":"linux","variant":"v7","author":"a","history":[
            {"created":"2026-01-02T03:04:05Z","created_by":"COPY x"},{"created_by":"ENV A=b","empty_layer":true}]}"#;
        let origin = Origin::parse(bytes).unwrap();
        assert_eq!((origin.platform().as_str(), origin.author.as_deref()), ("linux/arm/v7", Some("a")));
        let steps: Vec<_> = origin.history.iter().map(|step| (step.created_by.as_deref(), step.is_empty)).collect();
        assert_eq!(steps, [(Some("COPY x"), false), (Some("ENV A=b"), true)]);
        assert_eq!(Origin::parse(br#"{"history":null}"#).unwrap().history, []);
    }

    #[test]
    fn an_image_for_other_machines_is_refused() {
        let error = Config::parse(br#"{"architecture":"s390x","os":"linux","rootfs":{}}"#).unwrap_err();
        assert!(error.to_string().starts_with("the image is for linux/s390x"), "{error}");
    }

    #[test]
    fn the_same_root_gives_the_same_config() {
        let id = LayerId::parse(&"a".repeat(64)).unwrap();
        assert_eq!(Config::for_root(&id), Config::for_root(&id));
        assert_eq!(Config::parse(&Config::for_root(&id)).unwrap().diff_ids, [id]);
    }
}
