//! Images of every kind come in, look inside as they should, and hostile ones reach nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use ampoule_client::types::{EndingKind, Image, ImageList, ImageRemoved, JobRequest};
use ampoule_tests::archive::{self, Archive};
use ampoule_tests::service::{command, kind, shell, stderr, stdout};
use ampoule_tests::{Options, Service};

fn empty() -> Service {
    Service::with(Options { without_image: true, ..Options::default() })
}

fn hello_in(service: &Service, image: &str) {
    let job = service.run(&JobRequest { image: image.to_owned(), ..command(&["/bin/echo", "hello"]) });
    assert_eq!((kind(&job), stdout(&job)), (EndingKind::Exited, "hello\n"), "{:?}", job.ending);
}

fn run(program: &str, arguments: &[&str], folder: &Path) {
    let output = Command::new(program).args(arguments).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}\nhint: make setup"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_root_as_plain_and_as_compressed_tar_is_the_same_layer() {
    let service = empty();
    let plain = service.import(&archive::busybox(), "plain");
    let packed = service.import(&archive::gzip(&archive::busybox()), "packed");
    hello_in(&service, "plain");
    hello_in(&service, "packed");
    assert_ne!(plain.digest, "");
    assert_ne!(packed.digest, "");
    // One unpacked layer serves both. What was unpacked for nothing may still be on its way out, under a hidden name.
    let names = fs::read_dir(service.state().join("layers")).expect("we are root");
    let names = names.map(|entry| entry.expect("the folder can be read").file_name().to_string_lossy().into_owned());
    assert_eq!(names.filter(|name| !name.starts_with('.')).count(), 1);
}

#[test]
fn the_store_is_an_oci_layout_that_others_read_and_what_they_write_comes_back_in() {
    let service = Service::start();
    let folder = service.folder();
    let store = format!("oci:{}:docker.io/library/busybox:latest", service.state().join("oci").display());
    run("skopeo", &["copy", "--insecure-policy", &store, "docker-archive:docker.tar:again:1"], folder);
    run("skopeo", &["copy", "--insecure-policy", &store, "oci-archive:oci.tar:again:2"], folder);
    for (file, name) in [("docker.tar", "docker:1"), ("oci.tar", "layout:2")] {
        service.import(&fs::read(folder.join(file)).expect("skopeo wrote it"), name);
        hello_in(&service, name);
    }
}

#[test]
fn layers_above_hide_what_they_remove() {
    let service = empty();
    let folder = service.folder().join("image");
    for name in ["lower", "upper", "layout"] {
        fs::create_dir_all(folder.join(name)).expect("the folder can be written");
    }
    // docker save by hand: two layers, the upper with whiteouts.
    let whiteouts = Archive::default()
        .folder("etc", 0o755, 0)
        .file("etc/.wh.hostname", 0o644, 0, b"")
        .file("etc/added", 0o644, 0, b"added\n")
        .folder("home", 0o755, 0)
        .file("home/.wh..wh..opq", 0o644, 0, b"")
        .file("home/fresh", 0o644, 0, b"fresh\n")
        .finish();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["/bin/echo", "the image's own"] },
        "rootfs": { "type": "layers", "diff_ids": [sha256(&archive::busybox()), sha256(&whiteouts)] },
    });
    let manifest =
        serde_json::json!([{ "Config": "config.json", "RepoTags": ["two:layers"], "Layers": ["1.tar", "2.tar"] }]);
    let saved = Archive::default()
        .file("config.json", 0o644, 0, config.to_string().as_bytes())
        .file("1.tar", 0o644, 0, &archive::busybox())
        .file("2.tar", 0o644, 0, &whiteouts)
        .file("manifest.json", 0o644, 0, manifest.to_string().as_bytes())
        .finish();
    let image = service.import(&saved, "two:layers");
    assert_eq!(image.layers, 2);
    let look = JobRequest {
        image: "two:layers".to_owned(),
        ..shell("ls /etc /home; cat /etc/added; echo $FROM_IMAGE; ls -A /home/worker 2>&1 | wc -l")
    };
    let job = service.run(&look);
    assert_eq!(stdout(&job), "/etc:\nadded\ngroup\npasswd\n\n/home:\nfresh\nadded\nyes\n1\n", "{}", stderr(&job));
    let own = service.run(&JobRequest { image: "two:layers".to_owned(), ..JobRequest::default() });
    assert_eq!(stdout(&own), "the image's own\n");
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[test]
fn a_hostile_archive_writes_nothing_outside_its_root() {
    let service = empty();
    let marker = service.folder().join("marker");
    fs::write(&marker, "untouched").expect("the folder can be written");
    let target = marker.to_string_lossy().into_owned();
    let climbing = format!("../../../../../../../../../..{target}");
    let hostile: Vec<(&str, Vec<u8>)> = vec![
        ("climbing", raw_entry(&climbing, b'0', "", b"owned")),
        ("absolute", raw_entry(&target, b'0', "", b"owned")),
        (
            "through a link",
            [raw_entry("door", b'2', "/", b""), raw_entry(&format!("door{target}"), b'0', "", b"owned")].concat(),
        ),
        ("hard link", [raw_entry("twin", b'1', &climbing, b""), raw_entry("twin", b'0', "", b"owned")].concat()),
        ("device", raw_entry("disk", b'4', "", b"")),
        ("layers above", raw_entry("../../oci/index.json", b'0', "", b"owned")),
    ];
    for (name, entries) in hostile {
        let archive = [entries, vec![0; 1024]].concat();
        let answer = service.try_import(&archive, "hostile");
        assert!(answer.status < 500, "{name}: HTTP {} {}", answer.status, answer.text());
        assert_eq!(fs::read_to_string(&marker).expect("it is there"), "untouched", "{name}");
    }
    service.import(&archive::busybox(), "fine");
    hello_in(&service, "fine");
}

/// A tar entry that no honest program writes.
fn raw_entry(name: &str, kind: u8, target: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    let mut put = |offset: usize, bytes: &[u8]| header[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, b"0000644\x000000000\x000000000\x00");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\x00        ");
    put(156, &[kind]);
    put(157, &target.as_bytes()[..target.len().min(100)]);
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut entry = header.to_vec();
    entry.extend_from_slice(content);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

#[test]
fn an_image_that_is_removed_is_gone_with_its_layers() {
    let service = Service::start();
    hello_in(&service, "busybox");
    let listed: ImageList = service.get("/v1/images").json();
    assert_eq!(listed.images.len(), 1);
    let one: Image = service.get("/v1/images/busybox").json();
    assert!(one.config.is_some() && one.digest == listed.images[0].digest);
    let removed: ImageRemoved = service.send("DELETE", "/v1/images/busybox", &[], b"").expect_status(200).json();
    assert!(!removed.untagged.is_empty() && removed.freed_bytes > 0, "{removed:?}");
    assert_eq!(fs::read_dir(service.state().join("layers")).expect("we are root").count(), 0);
    service.post("/v1/jobs", &command(&["true"])).expect_status(404);
}

#[test]
fn an_image_that_a_job_uses_cannot_be_pulled_from_under_it() {
    let service = Service::start();
    let job = service.submit(&shell("sleep 1; echo still here; /bin/echo and well"));
    service.wait_for(&job.id, |job| job.state != ampoule_client::types::JobState::Queued);
    let answer = service.send("DELETE", "/v1/images/busybox", &[], b"");
    assert!(answer.status == 409 || answer.status == 200, "{} {}", answer.status, answer.text());
    let job = service.wait(&job.id);
    assert_eq!(stdout(&job), "still here\nand well\n", "{:?} {}", job.ending, stderr(&job));
}
