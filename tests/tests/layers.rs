//! Layers on disk: whole or absent, as many as an image may have, read again and found out when they were tampered
//! with; exported, compared, and shared without sharing locks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use ampoule_client::types::{
    ChangeKind, EndingKind, FileKind, Image, ImageDiff, ImageList, JobRequest, Verification, VerifyRequest,
};
use ampoule_tests::archive::{self, Archive};
use ampoule_tests::service::{kind, shell, stderr, stdout};
use ampoule_tests::{Options, Service, ampoule_program, patience};
use nix::sys::signal::{Signal, kill};
use sha2::{Digest, Sha256};

fn empty() -> Service {
    Service::with(Options { without_image: true, ..Options::default() })
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `docker save` writes for an image of these layers, lowest first.
fn saved(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": { "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let files: Vec<String> = (0..layers.len()).map(|number| format!("{number}.tar")).collect();
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [name], "Layers": files }]);
    let mut saved = Archive::default().file("config.json", 0o644, 0, config.to_string().as_bytes());
    for (file, layer) in files.iter().zip(layers) {
        saved = saved.file(file, 0o644, 0, layer);
    }
    saved.file("manifest.json", 0o644, 0, manifest.to_string().as_bytes()).finish()
}

/// The names of whole layers on disk.
fn layers_on_disk(service: &Service) -> Vec<String> {
    let names = fs::read_dir(service.state().join("layers")).expect("we are root");
    let names = names.map(|entry| entry.expect("the folder can be read").file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with('.')).collect()
}

fn job_in(service: &Service, image: &str, line: &str) -> String {
    let job = service.run(&JobRequest { image: image.to_owned(), ..shell(line) });
    assert_eq!(kind(&job), EndingKind::Exited, "{:?} {}", job.ending, stderr(&job));
    stdout(&job).to_owned()
}

fn verify(service: &Service, request: &VerifyRequest) -> Verification {
    service.post("/v1/images:verify", request).expect_status(200).json()
}

fn cli(service: &Service, arguments: &[&str]) -> Output {
    let host = format!("unix://{}", service.socket().display());
    Command::new(ampoule_program()).args(["--host", &host]).args(arguments).output().expect("the program can be run")
}

#[test]
fn an_image_of_127_layers_runs_and_each_layer_hides_the_one_below() {
    let service = empty();
    let layer = |number: usize| {
        let own = format!("etc/of-{number}");
        let text = number.to_string();
        Archive::default().folder("etc", 0o755, 0).file("etc/top", 0o644, 0, text.as_bytes()).file(&own, 0o644, 0, b"")
    };
    let mut layers = vec![archive::busybox()];
    layers.extend((1..127).map(|number| layer(number).finish()));
    let image = service.import(&saved("many:layers", &layers), "many:layers");
    assert_eq!(image.layers, 127);
    assert_eq!(job_in(&service, "many:layers", "cat /etc/top; ls /etc | grep -c of-"), "126126\n");
    layers.push(layer(127).finish());
    let refused = service.try_import(&saved("too:many", &layers), "too:many");
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert!(refused.text().contains("128 layers, and 1 to 127 can be mounted"), "{}", refused.text());
}

#[test]
fn a_layer_that_hides_everything_below_it_does() {
    let service = empty();
    let lower = Archive::default().folder("etc", 0o755, 0).file("etc/secret", 0o644, 0, b"x").finish();
    let upper = Archive::default().file(".wh..wh..opq", 0o644, 0, b"").finish();
    service.import(&saved("fresh:start", &[lower, upper, archive::busybox()]), "fresh:start");
    assert_eq!(job_in(&service, "fresh:start", "ls /etc"), "group\nhostname\npasswd\n");
    let tar = service.get("/v1/images:export?image=fresh:start");
    assert!(!String::from_utf8_lossy(&tar.body).contains("etc/secret"));
}

#[test]
fn an_export_is_the_image_and_comes_in_again() {
    let service = Service::start();
    let folder = service.folder();
    let added = Archive::default().folder("etc", 0o755, 0).file("etc/.wh.hostname", 0o644, 0, b"").finish();
    service.import(&saved("two:layers", &[archive::busybox(), added]), "two:layers");
    let file = folder.join("flat.tar");
    let written = cli(&service, &["image", "export", "two:layers", "-o", &file.to_string_lossy()]);
    assert!(written.status.success(), "{written:?}");
    let tar = fs::read(&file).expect("it was written");
    assert_eq!(service.get("/v1/images:export?image=two:layers").body, tar, "the same image is the same tar");
    let image = service.import(&tar, "flat");
    assert_eq!(image.layers, 1);
    assert_eq!(job_in(&service, "flat", "ls /etc; stat -c %a /bin/inside-setuid"), "group\npasswd\n4755\n");
    let same: ImageDiff = service.get("/v1/images:diff?before=two:layers&after=flat").json();
    assert_eq!(same.changes, []);
    let diff: ImageDiff = service.get("/v1/images:diff?before=busybox&after=flat").json();
    let changes: Vec<_> = diff.changes.iter().map(|change| (change.path.as_str(), change.change)).collect();
    assert_eq!(changes, [("/etc/hostname", ChangeKind::Removed)]);
    let before = diff.changes[0].before.as_ref().expect("it was there");
    assert_eq!((before.kind, before.size_bytes, before.mode.as_str()), (FileKind::File, 6, "0644"));
    assert_eq!(before.sha256.as_deref(), Some(sha256(b"image\n").as_str()));
    let shown = cli(&service, &["image", "diff", "busybox", "flat"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("removed\t/etc/hostname\tfile 0644 0:0"), "{shown:?}");
    let piped = cli(&service, &["image", "export", "no-such-image", "-o", &folder.join("no.tar").to_string_lossy()]);
    assert!(!piped.status.success() && !folder.join("no.tar").exists() && !folder.join("no.tar.part").exists());
}

/// The root of the only unpacked layer.
fn only_layer(service: &Service) -> PathBuf {
    let layers = layers_on_disk(service);
    assert_eq!(layers.len(), 1);
    service.state().join("layers").join(&layers[0])
}

#[test]
fn a_tampered_layer_is_found_file_by_file_and_unpacked_again() {
    let service = Service::start();
    let layer = only_layer(&service);
    fs::write(layer.join("etc/hostname"), "owned\n").expect("we are root");
    fs::write(layer.join("planted"), "x").expect("we are root");
    let shallow = verify(&service, &VerifyRequest::default());
    assert_eq!(shallow.images[0].problems, Vec::<String>::new(), "{shallow:?}");
    let looked = verify(&service, &VerifyRequest { deep: true, look_only: true, ..VerifyRequest::default() });
    let problems = looked.images[0].problems.join("\n");
    assert!(problems.contains("`etc/hostname`: it has another content"), "{problems}");
    assert!(problems.contains("`planted` does not belong there"), "{problems}");
    assert!(layer.join("planted").exists() && !looked.images[0].is_usable);
    let mut service = service;
    service.stop();
    service.spawn();
    let shown = cli(&service, &["image", "verify", "--deep"]);
    assert_eq!(shown.status.code(), Some(1), "{shown:?}");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("was unpacked again"), "{shown:?}");
    assert!(!only_layer(&service).join("planted").exists());
    assert_eq!(job_in(&service, "busybox", "cat /etc/hostname"), "image\n");
    let whole = cli(&service, &["image", "verify", "--deep"]);
    assert_eq!(whole.status.code(), Some(0), "{whole:?}");
}

#[test]
fn a_damaged_blob_is_named_and_set_aside_so_that_it_comes_again() {
    let service = Service::start();
    let image: Image = service.get("/v1/images/busybox").json();
    let blobs = service.state().join("oci/blobs/sha256");
    let largest = fs::read_dir(&blobs).expect("we are root").map(|entry| entry.expect("it can be read").path());
    let largest = largest.max_by_key(|path| path.metadata().expect("it is there").len()).expect("there is one");
    let mut bytes = fs::read(&largest).expect("we are root");
    bytes[1000] ^= 1;
    fs::write(&largest, &bytes).expect("we are root");
    let found = verify(&service, &VerifyRequest { image: Some("busybox".to_owned()), ..VerifyRequest::default() });
    let problem = found.images[0].problems.join("\n");
    let name = largest.file_name().expect("it has a name").to_string_lossy().into_owned();
    assert!(problem.contains(&name) && problem.contains("has decayed"), "{problem}");
    assert!(!largest.exists() && !found.images[0].is_usable, "{found:?}");
    let listed: ImageList = service.get("/v1/images").json();
    assert!(listed.images[0].damage.is_some());
    let shown = cli(&service, &["image", "ls"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("busybox:latest (damaged)"), "{shown:?}");
    assert_eq!(service.import(&archive::busybox(), "busybox").digest, image.digest);
    assert_eq!(job_in(&service, "busybox", "echo whole"), "whole\n");
    assert_eq!(verify(&service, &VerifyRequest::default()).images[0].problems, Vec::<String>::new());
}

#[test]
fn two_sandboxes_of_one_layer_share_no_locks() {
    let service = Service::start();
    let holder = service.submit(&shell("inside lock 4"));
    service.wait_for(&holder.id, |job| job.state == ampoule_client::types::JobState::Running);
    thread::sleep(Duration::from_millis(500));
    assert_eq!(job_in(&service, "busybox", "inside lock 0"), "file free record free\n");
    let held = service.job(&holder.id);
    assert_eq!(held.state, ampoule_client::types::JobState::Running, "it holds its locks all the while");
    assert_eq!(stdout(&service.wait(&holder.id)), "file free record free\n");
    let within = "inside lock 3 & sleep 1; inside lock 0; wait";
    let told = job_in(&service, "busybox", within);
    assert_eq!(told, "file free record free\nfile taken record taken\n", "within one sandbox locks count");
}

#[test]
fn what_is_left_out_of_a_layer_is_told_to_whoever_imports_it() {
    let service = empty();
    let folder = service.folder().join("root");
    fs::create_dir_all(folder.join("dev")).expect("the folder can be written");
    run("mknod", &["dev/sda", "b", "8", "0"], &folder);
    run("tar", &["-cf", "../devices.tar", "."], &folder);
    let listed: ImageList =
        service.try_import(&fs::read(service.folder().join("devices.tar")).expect("tar wrote it"), "devices").json();
    assert_eq!(listed.images[0].skipped.expect("it is told").devices, 1);
    let shown = cli(&service, &["image", "import", &service.folder().join("devices.tar").to_string_lossy(), "-n", "d"]);
    assert!(String::from_utf8_lossy(&shown.stderr).contains("left out 1 device nodes"), "{shown:?}");
}

#[test]
fn file_capabilities_come_through_and_give_nothing_in_a_sandbox() {
    let service = empty();
    let folder = service.folder().join("root");
    fs::create_dir_all(&folder).expect("the folder can be written");
    fs::write(folder.join("../busybox.tar"), archive::busybox()).expect("the folder can be written");
    run("tar", &["-xf", "../busybox.tar"], &folder);
    run("cp", &["bin/inside", "bin/capable"], &folder);
    // Bit 1 and 3 make a byte 0x0a, at which readers that split records by lines break.
    run("setcap", &["cap_dac_override,cap_fowner=ep", "bin/capable"], &folder);
    run("tar", &["--xattrs", "--xattrs-include=*", "-cf", "../capable.tar", "."], &folder);
    service.import(&fs::read(service.folder().join("capable.tar")).expect("tar wrote it"), "capable");
    let exported = service.get("/v1/images:export?image=capable").body;
    let needle = b"SCHILY.xattr.security.capability=\x01\x00\x00\x02\x0a\x00\x00\x00";
    assert!(exported.windows(needle.len()).any(|window| window == needle), "version 2, as it came");
    let job =
        service.run(&JobRequest { image: "capable".to_owned(), ..shell("cat /root/private; /bin/capable; exit 0") });
    assert_eq!(kind(&job), EndingKind::Exited, "{:?}", job.ending);
    assert!(!stderr(&job).contains("not permitted"), "it can be executed: {}", stderr(&job));
}

fn run(program: &str, arguments: &[&str], folder: &Path) {
    let output = Command::new(program).args(arguments).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}\nhint: make setup"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn has_unfinished_layers(service: &Service) -> bool {
    let mut names = fs::read_dir(service.state().join("layers")).expect("we are root").flatten();
    names.any(|entry| entry.file_name().to_string_lossy().starts_with('.'))
}

#[test]
fn a_killed_launcher_or_service_leaves_a_layer_whole_or_absent() {
    let mut service = Service::start();
    let content: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    for round in 0..6u64 {
        let mut layer = Archive::default().folder("data", 0o755, 0);
        for number in 0..200 {
            layer = layer.file(&format!("data/{round}-{number}"), 0o644, 0, &content[..4096 * (1 + number % 7)]);
        }
        let layer = layer.file("data/large", 0o644, 0, &content).finish();
        thread::scope(|scope| {
            // The answer may be anything: the service is killed while it works.
            let import = scope.spawn(|| service.try_send("POST", "/v1/images/import?name=killed", &[], &layer));
            thread::sleep(Duration::from_millis(15 * round * round + 5));
            let victim = if round % 2 == 0 { service.launcher() } else { service.pid() };
            kill(victim, Signal::SIGKILL).expect("it runs");
            drop(import.join());
        });
        service.wait_for_end();
        service.spawn();
        let deadline = Instant::now() + patience(Duration::from_secs(20));
        while has_unfinished_layers(&service) {
            assert!(Instant::now() < deadline, "a part of a layer is left");
            thread::sleep(Duration::from_millis(20));
        }
        let found = verify(&service, &VerifyRequest { deep: true, ..VerifyRequest::default() });
        assert!(found.images.iter().all(|image| image.problems.is_empty()), "{found:?}");
    }
}
