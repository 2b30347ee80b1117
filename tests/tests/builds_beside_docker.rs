//! What Ampoule builds is what docker builds of the same files: the same config and the same tree. Each folder of
//! `data/builds` is a case: a Dockerfile, its context, and `make.sh`, which adds to the context what no repository keeps:
//! modes, links, archives. Docker's builder here is the BuildKit in Debian's dockerd.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ampoule_tests::builds::client;
use ampoule_tests::docker::Daemon;
use ampoule_tests::{Options, Service, archive};
use anyhow::{Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// What of a config must be equal. Docker adds fields for containers, and leaves others empty or absent.
const CONFIG: [&str; 12] = [
    "User",
    "ExposedPorts",
    "Env",
    "Cmd",
    "Healthcheck",
    "Volumes",
    "WorkingDir",
    "Entrypoint",
    "OnBuild",
    "Labels",
    "StopSignal",
    "Shell",
];

/// An entry of a tree, without its time.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    kind: tar::EntryType,
    mode: u32,
    owner: (u64, u64),
    link: Option<PathBuf>,
    device: (Option<u32>, Option<u32>),
    content: String,
    attributes: BTreeMap<String, Vec<u8>>,
}

struct Sides {
    service: Service,
    daemon: Daemon,
    folder: TempDir,
}

impl Sides {
    fn start() -> Sides {
        // The daemon has no bridge, so that both have no network.
        let settings = TempDir::with_prefix("ampoule-settings-").expect("the temporary folder can be written");
        let file = settings.path().join("ampoule.toml");
        fs::write(&file, "[network]\nbuilds = false\n").expect("the folder can be written");
        let arguments = vec!["--config".to_owned(), file.display().to_string()];
        let service = Service::with(Options { arguments, ..Options::default() });
        let folder = TempDir::with_prefix("ampoule-docker-").expect("the temporary folder can be written");
        let daemon = Daemon::start(&folder.path().join("docker")).expect("it starts");
        let base = folder.path().join("busybox.tar");
        fs::write(&base, archive::busybox()).expect("the folder can be written");
        daemon.run(&["import", &base.display().to_string(), "busybox"]).expect("it is imported");
        Sides { service, daemon, folder }
    }

    /// Builds a case by both, and says how the images differ.
    fn compare(&self, name: &str, case: &Path) -> Result<Vec<String>> {
        let context = self.folder.path().join(name);
        run(Command::new("cp").args(["-a"]).arg(case).arg(&context))?;
        if context.join("make.sh").exists() {
            run(Command::new("sh").arg("-eu").arg("make.sh").current_dir(&context))?;
            fs::remove_file(context.join("make.sh"))?;
        }
        let mut ours = client(&self.service, &[]);
        ours.args(["build", "--tag", &format!("{name}:ampoule")]).arg(&context);
        run(&mut ours)?;
        let saved = self.folder.path().join(format!("{name}.tar"));
        run(client(&self.service, &[]).args(["image", "save", &format!("{name}:ampoule"), "--output"]).arg(&saved))?;
        run(self.daemon.command().args(["load", "--input"]).arg(&saved))?;
        // The client of the daemon's own version has BuildKit's part of the conversation.
        let mut theirs = Command::new("/usr/bin/docker");
        theirs.arg("-H").arg(format!("unix://{}", self.daemon.socket().display())).env("DOCKER_BUILDKIT", "1");
        theirs.args(["build", "--network=none", "--tag", &format!("{name}:docker")]).arg(&context);
        run(&mut theirs)?;
        let (ours, theirs) = (format!("{name}:ampoule"), format!("{name}:docker"));
        let mut differences = differing_configs(&self.config(&ours)?, &self.config(&theirs)?);
        differences.extend(differing_trees(&self.tree(&ours)?, &self.tree(&theirs)?));
        Ok(differences)
    }

    fn config(&self, image: &str) -> Result<Value> {
        let text = self.daemon.run(&["image", "inspect", image])?;
        let mut documents: Value = serde_json::from_str(&text)?;
        Ok(documents[0]["Config"].take())
    }

    fn tree(&self, image: &str) -> Result<BTreeMap<PathBuf, Entry>> {
        let id = self.daemon.run(&["create", image, "none"])?;
        let output = run(self.daemon.command().args(["export", id.trim()]))?;
        let mut archive = tar::Archive::new(&output.stdout[..]);
        archive.entries()?.map(|entry| read(entry?)).collect()
    }
}

fn read(mut entry: tar::Entry<'_, &[u8]>) -> Result<(PathBuf, Entry)> {
    let mut attributes = BTreeMap::new();
    for attribute in entry.pax_extensions()?.into_iter().flatten() {
        let attribute = attribute?;
        if attribute.key()?.starts_with("SCHILY.xattr.") {
            attributes.insert(attribute.key()?.to_owned(), attribute.value_bytes().to_vec());
        }
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content)?;
    let header = entry.header();
    let found = Entry {
        kind: header.entry_type(),
        mode: header.mode()?,
        owner: (header.uid()?, header.gid()?),
        link: entry.link_name()?.map(std::borrow::Cow::into_owned),
        device: (header.device_major()?, header.device_minor()?),
        content: Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect(),
        attributes,
    };
    Ok((entry.path()?.into_owned(), found))
}

fn differing_configs(ours: &Value, theirs: &Value) -> Vec<String> {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(_) => false,
    };
    let differs = |field: &&&str| {
        let (ours, theirs) = (&ours[**field], &theirs[**field]);
        ours != theirs && !(is_empty(ours) && is_empty(theirs))
    };
    let told = |field: &&str| format!("config.{field}: ours {}, docker's {}", ours[*field], theirs[*field]);
    CONFIG.iter().filter(differs).map(told).collect()
}

fn differing_trees(ours: &BTreeMap<PathBuf, Entry>, theirs: &BTreeMap<PathBuf, Entry>) -> Vec<String> {
    let paths: std::collections::BTreeSet<&PathBuf> = ours.keys().chain(theirs.keys()).collect();
    let differing = paths.into_iter().filter(|path| ours.get(*path) != theirs.get(*path));
    differing
        .map(|path| format!("{}: ours {:?}, docker's {:?}", path.display(), ours.get(path), theirs.get(path)))
        .collect()
}

fn run(command: &mut Command) -> Result<Output> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

#[test]
fn what_is_built_is_what_docker_builds() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/builds");
    let mut names: Vec<String> = fs::read_dir(&cases)
        .expect("they are kept")
        .map(|entry| entry.expect("they can be read").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(names.len() >= 10, "{names:?}");
    let sides = Sides::start();
    let mut wrong = Vec::new();
    for name in names {
        match sides.compare(&name, &cases.join(&name)) {
            Ok(differences) => wrong.extend(differences.into_iter().map(|difference| format!("{name}: {difference}"))),
            Err(error) => wrong.push(format!("{name}: {error:#}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
