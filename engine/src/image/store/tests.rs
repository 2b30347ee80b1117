//! The store with real archives and a runtime that really unpacks, in this process. `skopeo` is the other program that
//! reads what we write and writes what we read.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::image::layer::{self, UnpackLimits};
use crate::runtime::{Census, Input, Pending, Running, Unpacked};
use crate::spec::SandboxSpec;

mod local;

/// Unpacks in this process; runs nothing.
struct Unpacker {
    layers: PathBuf,
    unpacked: AtomicUsize,
}

impl Unpacker {
    fn unpack(&self, archive: File) -> Result<Unpacked, RuntimeError> {
        let draft = self.layers.join(format!(".draft-{}", self.unpacked.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&draft).unwrap();
        let root = File::open(&draft).unwrap();
        let unpacked = layer::unpack(archive, root.as_fd(), UnpackLimits::default());
        let unpacked = unpacked.inspect_err(|_| fs::remove_dir_all(&draft).unwrap());
        let unpacked = unpacked.map_err(|error| RuntimeError::Layer(crate::sys::in_one_line(&error)))?;
        let layer = LayerId::parse(&unpacked.diff_id)?;
        if fs::rename(&draft, self.layers.join(layer.hex())).is_err() {
            fs::remove_dir_all(&draft).unwrap();
        }
        let layer::Unpacked { tar_bytes, entries, skipped, .. } = unpacked;
        Ok(Unpacked { layer, tar_bytes, entries, skipped })
    }
}

impl Runtime for Unpacker {
    fn launch(&self, _: SandboxSpec, _: Input) -> Pending<'_, Result<Running, RuntimeError>> {
        Box::pin(async { Err(RuntimeError::Gone) })
    }

    fn unpack_layer(&self, archive: File) -> Pending<'_, Result<Unpacked, RuntimeError>> {
        Box::pin(async move { self.unpack(archive) })
    }

    fn remove_layer(&self, layer: LayerId) -> Pending<'_, Result<(), RuntimeError>> {
        let folder = self.layers.join(layer.hex());
        Box::pin(async move {
            fs::remove_dir_all(folder).unwrap();
            Ok(())
        })
    }

    fn census(&self) -> Census {
        Census::default()
    }
}

/// A state folder with a store and what a store needs.
struct Fixture {
    state: tempfile::TempDir,
    unpacker: Unpacker,
    runtime: tokio::runtime::Runtime,
    store: Option<Store>,
}

impl Fixture {
    fn new() -> Fixture {
        let state = tempfile::tempdir().unwrap();
        let unpacker = Unpacker { layers: state.path().join("layers"), unpacked: AtomicUsize::new(0) };
        fs::create_dir(&unpacker.layers).unwrap();
        let store = Some(Store::open(state.path()).unwrap());
        Fixture {
            unpacker,
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap(),
            store,
            state,
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// Closes the store and opens it again, as a service does that was killed.
    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(Store::open(self.state.path()).unwrap());
    }

    fn import(&self, archive: &[u8], name: Option<&str>) -> Result<Vec<ImageSummary>, ImportError> {
        let _entered = self.runtime.enter();
        let name = name.map(|name| Reference::parse(name).unwrap());
        self.store().import(&self.unpacker, archive, name.as_ref())
    }

    fn import_layout(&self, folder: &Path, name: Option<&str>) -> Result<Vec<ImageSummary>, ImportError> {
        let _entered = self.runtime.enter();
        let name = name.map(|name| Reference::parse(name).unwrap());
        self.store().import_layout(&self.unpacker, folder, name.as_ref())
    }

    fn remove(&self, reference: &str) -> Result<Removed, RemoveError> {
        let _entered = self.runtime.enter();
        self.store().remove(&self.unpacker, reference, false)
    }

    fn reconcile(&self) -> Reconciled {
        let _entered = self.runtime.enter();
        self.store().reconcile(&self.unpacker).unwrap()
    }

    fn names(&self) -> Vec<Option<String>> {
        self.store().list().into_iter().map(|summary| summary.reference).collect()
    }

    fn oci(&self) -> PathBuf {
        self.state.path().join("oci")
    }

    fn blobs(&self) -> BTreeSet<String> {
        names_in(&self.oci().join("blobs/sha256"))
    }

    fn layers(&self) -> BTreeSet<String> {
        names_in(&self.unpacker.layers)
    }

    /// Nothing is in the store, on disk or in a temporary folder.
    fn check_empty(&self) {
        assert_eq!((self.blobs(), self.layers()), (BTreeSet::new(), BTreeSet::new()));
        assert_eq!(names_in(&self.oci().join(".incoming")), BTreeSet::new());
        assert!(self.store().list().is_empty());
    }

    /// The archive is refused with this sentence, and nothing of it is left.
    fn check_refused(archive: &[u8], sentence: &str) {
        let fixture = Fixture::new();
        let error = in_one_line(&fixture.import(archive, None).unwrap_err());
        assert!(error.contains(sentence), "{error}");
        fixture.check_empty();
    }
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A tar of these files; a name that ends with a slash is a folder, `->` in it makes a link.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(u64::from(rustix::process::getuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getgid().as_raw()));
        header.set_size(0);
        if let Some((name, target)) = name.split_once("->") {
            header.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut header, name, target).unwrap();
        } else if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            builder.append_data(&mut header, name, &[][..]).unwrap();
        } else {
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

fn root() -> Vec<u8> {
    tar(&[("bin/", b""), ("bin/tool", b"#!/bin/true"), ("etc/", b""), ("etc/passwd", b"root:x:0:0::/:/bin/sh\n")])
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, data).unwrap();
    encoder.finish().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    Digest::of(bytes).hex().to_owned()
}

/// The files of an archive by name.
type Files = BTreeMap<String, Vec<u8>>;

/// An OCI layout under construction.
#[derive(Clone, Default)]
struct Layout {
    members: Files,
    manifests: Vec<Value>,
}

impl Layout {
    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        self.members.insert(format!("blobs/sha256/{}", hex(bytes)), bytes.to_vec());
        json!({ "mediaType": media_type, "digest": format!("sha256:{}", hex(bytes)), "size": bytes.len() })
    }

    /// Adds an image of these layers (plain tars, stored as gzip); returns its descriptor.
    fn image(&mut self, architecture: &str, layers: &[Vec<u8>]) -> Value {
        let ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "2026-01-01T00:00:00Z",
            "config": { "Cmd": ["/bin/tool"], "Env": ["A=b"], "Labels": { "x": "y" } },
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        self.image_with(&config, layers)
    }

    fn image_with(&mut self, config: &Value, layers: &[Vec<u8>]) -> Value {
        let config = self.blob(manifest::CONFIG_TYPE, config.to_string().as_bytes());
        let layers: Vec<_> =
            layers.iter().map(|layer| self.blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(layer))).collect();
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": manifest::MANIFEST_TYPE, "config": config, "layers": layers });
        self.blob(manifest::MANIFEST_TYPE, manifest.to_string().as_bytes())
    }

    /// Names a descriptor in the list at the top.
    fn list(&mut self, mut descriptor: Value, annotation: &str, name: &str) {
        descriptor["annotations"] = json!({ annotation: name });
        self.manifests.push(descriptor);
    }

    fn finish(mut self) -> Files {
        self.members.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        self.members.insert("index.json".into(), index.to_string().into_bytes());
        self.members
    }

    fn tar(self) -> Vec<u8> {
        tar_of(&self.finish())
    }
}

fn tar_of(members: &Files) -> Vec<u8> {
    tar(&members.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect::<Vec<_>>())
}

const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Three layers, the upper two with deletions.
fn layers() -> Vec<Vec<u8>> {
    vec![
        root(),
        tar(&[("etc/.wh.passwd", b""), ("new/", b""), ("new/file", b"2")]),
        tar(&[("new/.wh..wh..opq", b""), ("new/top", b"3")]),
    ]
}

fn three_layers(name: &str) -> Layout {
    let mut layout = Layout::default();
    let image = layout.image("amd64", &layers());
    layout.list(image, REF_NAME, name);
    layout
}

fn skopeo(arguments: &[&str]) -> String {
    let output = Command::new("skopeo").args(arguments).output().expect("skopeo is installed by `make setup`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_root_file_system_becomes_an_image_however_it_is_packed() {
    let fixture = Fixture::new();
    for (archive, name) in
        [(root(), "plain"), (gzip(&root()), "gzip"), (zstd::encode_all(&root()[..], 1).unwrap(), "zstd:1")]
    {
        let imported = fixture.import(&archive, Some(name)).unwrap();
        let image = fixture.store().resolve(name).unwrap();
        assert_eq!(imported[0].digest, image.digest);
        assert_eq!(image.layers, [LayerId::parse(&hex(&root())).unwrap()]);
        assert_eq!(image.config.env.len(), 1, "a PATH");
        assert!(image.imported_unix.is_some());
    }
    assert_eq!(fixture.names(), [Some("gzip:latest".into()), Some("plain:latest".into()), Some("zstd:1".into())]);
    assert_eq!(fixture.layers(), BTreeSet::from([hex(&root())]));
}

#[test]
fn the_same_root_is_the_same_image() {
    let fixture = Fixture::new();
    let first = fixture.import(&root(), Some("a")).unwrap();
    let second = fixture.import(&root(), Some("b")).unwrap();
    assert_eq!(first[0].digest, second[0].digest);
    assert_eq!(fixture.blobs().len(), 3, "manifest, config, layer");
}

#[test]
fn a_root_without_a_name_is_found_by_its_digest() {
    let fixture = Fixture::new();
    let digest = fixture.import(&root(), None).unwrap()[0].digest.clone();
    assert_eq!(fixture.names(), [None]);
    let bare = digest.strip_prefix("sha256:").unwrap();
    for reference in [&digest, bare, &bare[..12]] {
        assert_eq!(fixture.store().resolve(reference).unwrap().digest, digest);
    }
    assert!(fixture.store().resolve(&bare[..11]).is_err());
    fixture.remove(&bare[..20]).unwrap();
    fixture.check_empty();
}

#[test]
fn other_programs_read_the_store() {
    let fixture = Fixture::new();
    fixture.import(&root(), Some("demo:1")).unwrap();
    let source = format!("oci:{}:docker.io/library/demo:1", fixture.oci().display());
    let inspected: Value = serde_json::from_str(&skopeo(&["inspect", &source])).unwrap();
    assert_eq!(inspected["Digest"], fixture.store().resolve("demo:1").unwrap().digest);
    let target = fixture.state.path().join("copy.tar");
    skopeo(&["copy", "-q", &source, &format!("docker-archive:{}:demo:2", target.display())]);
    let imported = fixture.import(&fs::read(target).unwrap(), None).unwrap();
    assert_eq!(imported[0].reference.as_deref(), Some("demo:2"));
    assert_eq!(fixture.store().resolve("demo:2").unwrap().layers, fixture.store().resolve("demo:1").unwrap().layers);
}

#[test]
fn an_oci_layout_is_imported_as_a_tar_and_as_a_folder() {
    let by_tar = Fixture::new();
    by_tar.import(&gzip(&three_layers("example/app:1").tar()), None).unwrap();
    let image = by_tar.store().resolve("example/app:1").unwrap();
    assert_eq!(image.layers, layers().iter().map(|layer| LayerId::parse(&hex(layer)).unwrap()).collect::<Vec<_>>());
    assert_eq!(
        (image.config.cmd.as_slice(), image.created.as_deref()),
        (&["/bin/tool".to_owned()][..], Some("2026-01-01T00:00:00Z"))
    );
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in three_layers("example/app:1").finish() {
        fs::create_dir_all(folder.path().join(&name).parent().unwrap()).unwrap();
        fs::write(folder.path().join(&name), bytes).unwrap();
    }
    let by_folder = Fixture::new();
    by_folder.import_layout(folder.path(), Some("other:2")).unwrap();
    assert_eq!(by_folder.store().resolve("other:2").unwrap().digest, image.digest);
    assert_eq!(by_folder.blobs(), by_tar.blobs());
    // The store's own folder is such a layout, too.
    let third = Fixture::new();
    third.import_layout(&by_tar.oci(), None).unwrap();
    assert_eq!(third.names(), [Some("example/app:1".into())]);
}

#[test]
fn what_skopeo_makes_of_a_layout_is_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("layout.tar"), three_layers("app:1").tar()).unwrap();
    let source = format!("oci-archive:{}:app:1", path("layout.tar"));
    skopeo(&["copy", "-q", &source, &format!("docker-archive:{}:app:1", path("docker.tar"))]);
    skopeo(&["copy", "-q", &source, &format!("oci-archive:{}:app:1", path("oci.tar"))]);
    let (docker, oci) = (Fixture::new(), Fixture::new());
    docker.import(&fs::read(path("docker.tar")).unwrap(), None).unwrap();
    oci.import(&fs::read(path("oci.tar")).unwrap(), None).unwrap();
    let (docker, oci) = (docker.store().resolve("app:1").unwrap(), oci.store().resolve("app:1").unwrap());
    assert_eq!(docker.layers, oci.layers);
    assert_eq!((&docker.config.cmd, &docker.config.labels), (&oci.config.cmd, &oci.config.labels));
}

/// What `docker save` wrote before it wrote OCI layouts: a folder for each layer, some of them only links.
fn saved(tags: &Value, layers: &[Vec<u8>], names: &[&str]) -> Files {
    let ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
    let config = json!({ "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": ids } });
    let config = config.to_string().into_bytes();
    let config_name = format!("{}.json", hex(&config));
    let mut members: BTreeMap<_, _> = names.iter().map(|name| (*name).to_owned()).zip(layers.iter().cloned()).collect();
    members.insert(
        "manifest.json".into(),
        json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]).to_string().into_bytes(),
    );
    members.insert(config_name, config);
    members.insert("repositories".into(), b"{}".to_vec());
    members
}

#[test]
fn what_docker_saved_is_imported_with_all_its_names() {
    let (first, second) = ("a".repeat(64), "b".repeat(64));
    let names = [format!("{first}/layer.tar"), format!("{second}/layer.tar")];
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut members = saved(&json!(["app:1", "host:5000/app:2"]), &[root(), root()], &names);
    members.remove(names[1]);
    let link = format!("{second}/layer.tar->../{first}/layer.tar");
    members.insert(link, Vec::new());
    let fixture = Fixture::new();
    fixture.import(&tar_of(&members), None).unwrap();
    assert_eq!(fixture.names(), [Some("app:1".into()), Some("host:5000/app:2".into())]);
    assert_eq!(fixture.store().resolve("app:1").unwrap().layers.len(), 1, "a layer that comes twice is mounted once");
    let nameless = Fixture::new();
    nameless.import(&tar_of(&saved(&Value::Null, &[root()], &["layer.tar"])), None).unwrap();
    assert_eq!(nameless.names(), [None]);
}

#[test]
fn a_name_that_is_given_counts_for_the_only_image() {
    let fixture = Fixture::new();
    fixture.import(&three_layers("ignored:1").tar(), Some("mine:1")).unwrap();
    assert_eq!(fixture.names(), [Some("mine:1".into())]);
    let mut two = three_layers("a:1");
    let other = two.image("amd64", &[root()]);
    two.list(other, REF_NAME, "b:1");
    assert!(fixture.import(&two.clone().tar(), Some("x")).unwrap_err().to_string().contains("holds 2 images"));
    fixture.import(&two.tar(), None).unwrap();
    assert_eq!(fixture.names(), ["a:1", "b:1", "mine:1"].map(|name| Some(name.to_owned())));
    let pinned = format!("x:1@sha256:{}", "a".repeat(64));
    assert!(fixture.import(&root(), Some(&pinned)).unwrap_err().to_string().contains("cannot be given as a name"));
}

#[test]
fn the_names_of_archives_are_understood() {
    for (annotation, name, expected) in [
        ("io.containerd.image.name", "docker.io/library/app:1", Some("app:1")),
        (REF_NAME, "localhost/app:1", Some("localhost/app:1")),
        (REF_NAME, "latest", None),
    ] {
        let mut layout = Layout::default();
        let image = layout.image("amd64", &[root()]);
        layout.list(image, annotation, name);
        let fixture = Fixture::new();
        fixture.import(&layout.tar(), None).unwrap();
        assert_eq!(fixture.names(), [expected.map(str::to_owned)], "{name}");
    }
}

#[test]
fn the_image_for_this_machine_is_chosen() {
    let mut layout = Layout::default();
    let mut entries = Vec::new();
    for architecture in ["arm64", "amd64"] {
        let mut image = layout.image(architecture, &[root()]);
        image["platform"] = json!({ "os": "linux", "architecture": architecture });
        entries.push(image);
    }
    let wanted = entries[1]["digest"].as_str().unwrap().to_owned();
    let only_arm = entries[..1].to_vec();
    for (entries, expected) in [(entries, Ok(wanted)), (only_arm, Err("only for linux/arm64"))] {
        let mut layout = layout.clone();
        let index =
            json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries });
        let index = layout.blob("application/vnd.oci.image.index.v1+json", index.to_string().as_bytes());
        layout.list(index, REF_NAME, "app:1");
        match expected {
            Ok(digest) => {
                let fixture = Fixture::new();
                fixture.import(&layout.tar(), None).unwrap();
                assert_eq!(fixture.store().resolve("app:1").unwrap().digest, digest);
            }
            Err(sentence) => Fixture::check_refused(&layout.tar(), sentence),
        }
    }
}

#[test]
fn an_archive_that_lies_leaves_nothing() {
    let tampered = |change: &dyn Fn(&mut Files)| {
        let mut members = three_layers("app:1").finish();
        change(&mut members);
        tar_of(&members)
    };
    let layer = format!("blobs/sha256/{}", hex(&gzip(&layers()[1])));
    Fixture::check_refused(&tampered(&|members| members.get_mut(&layer).unwrap().push(0)), "its content is sha256:");
    Fixture::check_refused(&tampered(&|members| drop(members.remove(&layer))), "does not hold it");
    Fixture::check_refused(
        &tampered(&|members| drop(members.insert("index.json".into(), b"{".to_vec()))),
        "not a manifest",
    );
    Fixture::check_refused(
        &tampered(&|members| drop(members.insert("index.json".into(), vec![b' '; 5 << 20]))),
        "larger than 4194304 bytes",
    );
    let mut empty = Layout::default();
    Fixture::check_refused(&empty.clone().tar(), "lists no images");
    // The config promises another layer than there is: the third one fails, and the first two go as well.
    let ids: Vec<_> = [0, 1, 0].map(|at| format!("sha256:{}", hex(&layers()[at]))).into();
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": ids } });
    let image = empty.image_with(&config, &layers());
    empty.list(image, REF_NAME, "app:1");
    Fixture::check_refused(&empty.tar(), "layer 3 is refused");
    let mut fewer = Layout::default();
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] } });
    let image = fewer.image_with(&config, &layers());
    fewer.list(image, REF_NAME, "app:1");
    Fixture::check_refused(&fewer.tar(), "3 layers, and its config names 0");
    let mut size = Layout::default();
    let mut image = size.image("amd64", &layers());
    image["size"] = json!(5);
    size.list(image, REF_NAME, "app:1");
    Fixture::check_refused(&size.tar(), "the manifest says 5");
}

#[test]
fn a_config_that_is_not_what_its_name_says_is_refused() {
    let members = saved(&Value::Null, &[root()], &["layer.tar"]);
    let (name, config) = members.iter().find(|(name, _)| name.len() == 69).unwrap();
    let changed = [&config[..], b" "].concat();
    let mut lying = members.clone();
    lying.insert(name.clone(), changed);
    Fixture::check_refused(&tar_of(&lying), "its content is sha256:");
}

#[test]
fn an_archive_that_is_none_leaves_nothing() {
    Fixture::check_refused(b"", "the archive is empty");
    Fixture::check_refused(b"hello, this is no archive at all", "ends in the middle of entry 1");
    Fixture::check_refused(&[7; 4096], "no tar archive");
    Fixture::check_refused(&gzip(&root())[..100], "ends in the middle");
    Fixture::check_refused(&tar(&[("etc/", b""), ("bin/a->..", b""), ("bin/a/b", b"x")]), "is not a folder");
    Fixture::check_refused(&tar(&[("oci-layout", b"{}")]), "neither `manifest.json` nor `index.json`");
}

#[test]
fn a_failed_import_leaves_what_others_have() {
    let fixture = Fixture::new();
    fixture.import(&three_layers("app:1").tar(), None).unwrap();
    let (blobs, on_disk) = (fixture.blobs(), fixture.layers());
    let mut lying = Layout::default();
    let ids: Vec<_> = [0, 1, 0].map(|at| format!("sha256:{}", hex(&layers()[at]))).into();
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": ids } });
    let image = lying.image_with(&config, &layers());
    lying.list(image, REF_NAME, "app:1");
    fixture.import(&lying.tar(), None).unwrap_err();
    assert_eq!((fixture.blobs(), fixture.layers()), (blobs, on_disk));
    assert!(fixture.store().resolve("app:1").is_ok());
}

#[test]
fn removing_the_last_name_removes_what_nobody_else_needs() {
    let fixture = Fixture::new();
    fixture.import(&root(), Some("root")).unwrap();
    fixture.import(&three_layers("app:1").tar(), None).unwrap();
    fixture.import(&three_layers("app:1").tar(), Some("app:2")).unwrap();
    let removed = fixture.remove("app:1").unwrap();
    assert_eq!(removed, Removed { untagged: vec!["app:1".into()], ..Removed::default() });
    let removed = fixture.remove("app:2").unwrap();
    assert_eq!((removed.untagged.len(), removed.removed.len()), (1, 5), "manifest, config and three layers as stored");
    assert!(removed.freed_bytes > 0);
    assert_eq!(fixture.layers(), BTreeSet::from([hex(&root())]), "the other image's layer stays");
    assert!(matches!(fixture.remove("app:2"), Err(RemoveError::Resolve(ResolveError::NotFound { .. }))));
    let digest = fixture.store().resolve("root").unwrap().digest.clone();
    fixture.remove(&digest).unwrap();
    fixture.check_empty();
}

#[test]
fn an_image_that_somebody_holds_is_not_removed() {
    let fixture = Fixture::new();
    fixture.import(&root(), Some("a")).unwrap();
    fixture.import(&root(), Some("b")).unwrap();
    let held = fixture.store().resolve("a").unwrap();
    fixture.remove("a").unwrap();
    assert!(matches!(fixture.remove("b"), Err(RemoveError::InUse { .. })));
    // Neither does it help to give the name to another image.
    fixture.import(&three_layers("b:latest").tar(), None).unwrap();
    assert!(matches!(fixture.remove(&held.digest), Err(RemoveError::InUse { .. })));
    let digest = held.digest.clone();
    drop(held);
    fixture.remove(&digest).unwrap();
    assert_eq!(fixture.names(), [Some("b:latest".into())]);
}

#[test]
fn a_name_moves_and_the_old_image_stays_without_one() {
    let mut fixture = Fixture::new();
    let old = fixture.import(&root(), Some("app")).unwrap()[0].digest.clone();
    let new = fixture.import(&three_layers("app:latest").tar(), None).unwrap()[0].digest.clone();
    for _ in 0..2 {
        assert_eq!(fixture.names(), [Some("app:latest".into()), None]);
        assert_eq!(fixture.store().resolve("app").unwrap().digest, new);
        assert_eq!(fixture.store().resolve(&old).unwrap().reference, None, "it is no longer called that");
        fixture.reopen();
    }
    let pin = |digest: &str| fixture.store().resolve(&format!("app:latest@{digest}"));
    assert_eq!(pin(&new).unwrap().digest, new);
    assert!(matches!(pin(&old), Err(ResolveError::Moved { .. })));
    assert!(fixture.store().resolve(&format!("app@{new}")).is_ok());
    assert!(fixture.store().resolve(&format!("trusted/app@{new}")).is_err(), "a digest does not lend a name");
    fixture.import(&root(), Some("again")).unwrap();
    assert_eq!(fixture.names(), [Some("again:latest".into()), Some("app:latest".into())]);
}

#[test]
fn a_store_that_is_opened_again_is_the_same() {
    let mut fixture = Fixture::new();
    fixture.import(&three_layers("app:1").tar(), None).unwrap();
    fixture.import(&root(), None).unwrap();
    let before = fixture.store().list();
    let image = format!("{:?}", fixture.store().resolve("app:1").unwrap());
    fixture.reopen();
    assert_eq!(fixture.store().list(), before);
    assert_eq!(format!("{:?}", fixture.store().resolve("app:1").unwrap()), image);
    assert!(matches!(Store::open(fixture.state.path()), Err(StoreError::Locked { .. })));
}

#[test]
fn what_a_killed_import_left_goes_with_the_next_start() {
    let mut fixture = Fixture::new();
    fixture.import(&root(), Some("app")).unwrap();
    let (blobs, on_disk) = (fixture.blobs(), fixture.layers());
    fixture.store = None;
    fs::write(fixture.oci().join("blobs/sha256").join("c".repeat(64)), "left").unwrap();
    fs::create_dir(fixture.oci().join(".incoming/7")).unwrap();
    fs::write(fixture.oci().join(".incoming/7/1"), "left").unwrap();
    fs::write(fixture.oci().join(".index.json.new"), "half").unwrap();
    fs::create_dir(fixture.unpacker.layers.join("d".repeat(64))).unwrap();
    fixture.reopen();
    let reconciled = fixture.reconcile();
    assert_eq!(reconciled.removed, [LayerId::parse(&"d".repeat(64)).unwrap()]);
    assert_eq!((fixture.blobs(), fixture.layers()), (blobs, on_disk));
    assert_eq!(names_in(&fixture.oci().join(".incoming")), BTreeSet::new());
    assert!(fixture.store().resolve("app").is_ok());
}

#[test]
fn a_layer_that_is_missing_is_unpacked_again() {
    let fixture = Fixture::new();
    fixture.import(&three_layers("app:1").tar(), None).unwrap();
    let on_disk = fixture.layers();
    fs::remove_dir_all(&fixture.unpacker.layers).unwrap();
    fs::create_dir(&fixture.unpacker.layers).unwrap();
    assert_eq!(fixture.reconcile().unpacked.len(), 3);
    assert_eq!(fixture.layers(), on_disk);
    assert_eq!(fixture.reconcile(), Reconciled::default());
}

#[test]
fn a_damaged_image_says_so_and_is_mended_by_another_import() {
    let mut fixture = Fixture::new();
    let digest = fixture.import(&root(), Some("app")).unwrap()[0].digest.clone();
    fixture.import(&three_layers("other:1").tar(), None).unwrap();
    let blobs = fixture.blobs();
    let manifest = fixture.oci().join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
    for damage in [&b"{}"[..], b""] {
        fs::write(&manifest, damage).unwrap();
        fixture.reopen();
        let error = fixture.store().resolve("app").unwrap_err();
        assert!(error.to_string().contains("has another content than its name says"), "{error}");
        assert!(fixture.store().list().iter().any(|summary| summary.damage.is_some()));
        assert!(fixture.store().resolve("other:1").is_ok());
        assert_eq!(fixture.blobs(), blobs, "nothing is swept while nobody knows what belongs to an image");
    }
    fixture.import(&root(), Some("app")).unwrap();
    assert!(fixture.store().resolve("app").is_ok());
    // A stored layer that decayed is found when it has to be unpacked.
    let layer = fixture.oci().join("blobs/sha256").join(hex(&root()));
    let decayed =
        tar(&[("bin/", b""), ("bin/tool", b"#!/bin/trud"), ("etc/", b""), ("etc/passwd", b"root:x:0:0::/:/bin/sh\n")]);
    fs::write(&layer, decayed).unwrap();
    fs::remove_dir_all(fixture.unpacker.layers.join(hex(&root()))).unwrap();
    assert_eq!(fixture.reconcile().damaged, [LayerId::parse(&hex(&root())).unwrap()]);
    assert!(fixture.store().resolve("app").unwrap_err().to_string().contains("has decayed"));
    fixture.remove("app").unwrap();
    assert_eq!(fixture.names(), [Some("other:1".into())]);
}

#[test]
fn an_index_that_is_damaged_is_not_overwritten() {
    let mut fixture = Fixture::new();
    fixture.import(&root(), Some("app")).unwrap();
    fixture.store = None;
    let index = fixture.oci().join("index.json");
    fs::write(&index, "{").unwrap();
    assert!(matches!(Store::open(fixture.state.path()), Err(StoreError::Index { .. })));
    assert_eq!(fs::read_to_string(&index).unwrap(), "{");
    assert_eq!(fixture.blobs().len(), 3);
}

#[test]
fn imports_and_removals_at_once_end_in_a_whole_store() {
    let fixture = Fixture::new();
    let archives = [root(), gzip(&root()), three_layers("app:1").tar(), three_layers("app:1").tar()];
    std::thread::scope(|scope| {
        for (number, archive) in archives.iter().enumerate() {
            let fixture = &fixture;
            scope.spawn(move || {
                for _ in 0..20 {
                    let name = format!("image-{number}");
                    fixture.import(archive, Some(&name)).unwrap();
                    // Whoever is given an image has all of its layers until it is given back.
                    let image = fixture.store().resolve(&name).unwrap();
                    let on_disk = fixture.layers();
                    assert!(image.layers.iter().all(|layer| on_disk.contains(layer.hex())));
                    drop(image);
                    match fixture.remove(&name) {
                        Ok(_) | Err(RemoveError::InUse { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    for summary in fixture.store().list() {
        fixture.remove(&summary.digest).unwrap();
    }
    fixture.check_empty();
}
