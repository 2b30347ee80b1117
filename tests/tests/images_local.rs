//! Images by name, by use and as archives: through the service and its command line, beside skopeo and umoci, and with
//! whatever can go wrong on the way.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use ampoule_client::types::{EndingKind, Image, ImageList, ImagesLoaded, ImagesPruned, JobRequest, JobState};
use ampoule_tests::archive;
use ampoule_tests::service::{command, kind, shell, stdout};
use ampoule_tests::{Options, Service, ampoule_program, patience};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;

fn ampoule(service: &Service, arguments: &[&str]) -> Output {
    let mut command = Command::new(ampoule_program());
    command.args(arguments).current_dir(service.folder());
    command.env("AMPOULE_HOST", format!("unix://{}", service.socket().display()));
    command.output().expect("the program can be run")
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn run(program: &str, arguments: &[&str], folder: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}\nhint: make setup"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn names(service: &Service) -> Vec<Option<String>> {
    service.get("/v1/images").json::<ImageList>().images.into_iter().map(|image| image.reference).collect()
}

/// A root file system with so many bytes that do not compress.
fn large_root(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    let mut state = 1u64;
    for piece in noise.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
    }
    archive::Archive::default().folder("etc", 0o755, 0).file("etc/noise", 0o644, 0, &noise).finish()
}

#[test]
fn what_the_command_line_saves_other_programs_read_and_it_loads_again() {
    let service = Service::start();
    done(&ampoule(&service, &["image", "tag", "busybox", "host:5000/box:1"]));
    let image: Image = service.get("/v1/images/busybox").json();
    let folder = service.folder();
    done(&ampoule(&service, &["image", "save", "busybox", "host:5000/box:1", "--output", "docker.tar"]));
    done(&ampoule(&service, &["image", "save", "busybox", "--format", "oci-archive", "-o", "oci.tar"]));
    let packed = ampoule(&service, &["image", "save", "busybox", "--compress", "zstd"]);
    done(&packed);
    assert!(packed.stderr.is_empty(), "nothing is drawn in a pipe");
    fs::write(folder.join("packed.tar.zst"), &packed.stdout).expect("the folder can be written");
    let inspected = run("skopeo", &["inspect", "oci-archive:oci.tar:docker.io/library/busybox:latest"], folder);
    assert!(inspected.contains(&image.digest), "{inspected}");
    run("skopeo", &["copy", "--insecure-policy", "docker-archive:docker.tar:host:5000/box:1", "dir:copy"], folder);
    fs::create_dir(folder.join("layout")).expect("the folder can be written");
    run("tar", &["--extract", "--file", "oci.tar", "--directory", "layout"], folder);
    let listed = run("umoci", &["ls", "--layout", "layout"], folder);
    assert_eq!(listed.trim(), "docker.io/library/busybox:latest");
    run("umoci", &["unpack", "--image", "layout:docker.io/library/busybox:latest", "bundle"], folder);
    assert!(folder.join("bundle/rootfs/bin/busybox").is_file());
    done(&ampoule(&service, &["image", "rm", "--force", &image.digest]));
    assert_eq!(names(&service), []);
    for name in ["docker.tar", "oci.tar", "packed.tar.zst"] {
        let loaded = done(&ampoule(&service, &["image", "load", "--input", name]));
        assert!(loaded.contains(&image.digest), "{name}: {loaded}");
    }
    assert_eq!(names(&service), ["busybox:latest", "host:5000/box:1"].map(|name| Some(name.to_owned())));
    assert_eq!(stdout(&service.run(&command(&["echo", "loaded"]))), "loaded\n");
}

#[test]
fn images_are_listed_by_what_is_asked_and_page_by_page() {
    let service = Service::start();
    for name in ["user/app:1", "user/app:1-rc", "user/app:2"] {
        done(&ampoule(&service, &["image", "tag", "busybox", name]));
    }
    let listed = done(&ampoule(&service, &["image", "ls", "--filter", "reference=user/*:1*"]));
    assert_eq!(listed.lines().count(), 3, "{listed}");
    let mut seen = Vec::new();
    let mut target = "/v1/images?limit=1".to_owned();
    loop {
        let page: ImageList = service.get(&target).json();
        assert_eq!(page.images.len(), 1);
        seen.extend(page.images.into_iter().filter_map(|image| image.reference));
        let Some(next) = page.next else { break };
        let cursor = next.replace(' ', "%20").replace('/', "%2F").replace(':', "%3A");
        target = format!("/v1/images?limit=1&cursor={cursor}");
    }
    assert_eq!(seen, ["busybox:latest", "user/app:1", "user/app:1-rc", "user/app:2"]);
    let empty: ImageList = service.get("/v1/images?dangling=true").json();
    assert_eq!(empty.images.len(), 0);
    for wrong in ["limit=0", "colour=red", "until=yesterday", "reference=%5B", "before=nothing"] {
        let status = service.send("GET", &format!("/v1/images?{wrong}"), &[], b"").status;
        assert!((400..500).contains(&status), "{wrong}: {status}");
    }
    let history = done(&ampoule(&service, &["image", "history", "busybox"]));
    assert!(history.contains("imported from a root file system"), "{history}");
    assert!(done(&ampoule(&service, &["image", "du"])).contains("unpacked layers\t1\t"));
}

#[test]
fn pruning_shows_first_and_lets_go_only_what_was_shown() {
    let service = Service::start();
    let busybox: Image = service.get("/v1/images/busybox").json();
    service.import(&archive::Archive::default().folder("etc", 0o755, 0).finish(), "busybox");
    assert_eq!(names(&service), [Some("busybox:latest".to_owned()), None]);
    let prune = |query: &str| service.send("POST", &format!("/v1/images:prune{query}"), &[], b"");
    let shown: ImagesPruned = prune("").expect_status(200).json();
    assert!(shown.dry_run && shown.images.len() == 1 && shown.images[0].digest == busybox.digest);
    assert_eq!(names(&service).len(), 2, "unless it is said, nothing goes");
    prune("?dry_run=false&plan=0000000000000000").expect_status(409);
    let unasked = ampoule(&service, &["image", "prune"]);
    assert!(!unasked.status.success(), "nobody could be asked");
    let done: ImagesPruned = prune(&format!("?dry_run=false&plan={}", shown.plan)).expect_status(200).json();
    assert_eq!(done, ImagesPruned { dry_run: false, ..shown });
    assert_eq!(names(&service), [Some("busybox:latest".to_owned())]);
}

#[test]
fn a_waiting_job_keeps_its_image_over_moved_names_removals_prunes_and_a_crash() {
    let options = Options { arguments: vec!["--concurrency".into(), "1".into()], ..Options::default() };
    let mut service = Service::with(options);
    let blocker = service.submit(&command(&["sleep", "1000"]));
    service.wait_for(&blocker.id, |job| job.state == JobState::Running);
    let waiting = service.submit(&shell("echo still the old one"));
    // The name goes to an image in which nothing can run.
    service.import(&archive::Archive::default().folder("etc", 0o755, 0).finish(), "busybox");
    let digest = service.job(&waiting.id).spec.expect("it was admitted").image_digest;
    service.send("DELETE", &format!("/v1/images/{digest}"), &[], b"").expect_status(409);
    service.send("DELETE", &format!("/v1/images/{digest}?force=true"), &[], b"").expect_status(409);
    let pruned: ImagesPruned =
        service.send("POST", "/v1/images:prune?all=true&dry_run=false", &[], b"").expect_status(200).json();
    assert!(pruned.images.iter().all(|image| image.digest != digest), "{pruned:?}");
    assert!(pruned.kept.iter().any(|image| image.digest == digest && image.by == "jobs"), "{pruned:?}");
    service.kill(Signal::SIGKILL);
    service.spawn();
    let ended = service.wait(&waiting.id);
    assert_eq!((kind(&ended), stdout(&ended)), (EndingKind::Exited, "still the old one\n"));
    let pruned: ImagesPruned =
        service.send("POST", "/v1/images:prune?dry_run=false", &[], b"").expect_status(200).json();
    assert!(pruned.images.iter().any(|image| image.digest == digest), "now nobody needs it: {pruned:?}");
}

#[test]
fn a_load_that_is_cut_by_a_kill_leaves_the_old_state() {
    let mut service = Service::start();
    let before = names(&service);
    let mut stream = UnixStream::connect(service.socket()).expect("the service listens");
    let head = "POST /v1/images:load HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("it reads");
    let start =
        archive::Archive::default().file("oci-layout", 0o644, 0, b"{}").file("blobs/x", 0o644, 0, &[7; 300_000]);
    stream.write_all(&start.finish()[..200_000]).expect("it reads");
    let incoming = service.state().join("oci/.incoming");
    let files = || fs::read_dir(&incoming).expect("we are root").count();
    let deadline = Instant::now() + patience(Duration::from_secs(10));
    while files() == 0 {
        assert!(Instant::now() < deadline, "nothing arrives");
        std::thread::sleep(Duration::from_millis(5));
    }
    service.kill(Signal::SIGKILL);
    service.spawn();
    assert_eq!((files(), names(&service)), (0, before));
    assert_eq!(stdout(&service.run(&command(&["echo", "as before"]))), "as before\n");
}

#[test]
fn a_full_disk_in_the_middle_is_told_and_leaves_the_store_as_it_was() {
    let mut service = Service::with(Options { without_image: true, ..Options::default() });
    service.stop();
    fs::remove_dir_all(service.state()).expect("it is stopped");
    fs::create_dir(service.state()).expect("the folder can be written");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), &service.state(), Some("tmpfs"), flags, Some("size=32m,mode=0700")).expect("we are root");
    service.spawn();
    service.import(&archive::busybox(), "busybox");
    let before = names(&service);
    let large = large_root(24 << 20);
    for _ in 0..2 {
        let answer = service.try_import(&large, "large");
        assert_eq!(answer.status, 507, "{}", answer.text());
        assert!(answer.text().contains("disk-full"), "{}", answer.text());
        assert_eq!(names(&service), before);
        assert_eq!(fs::read_dir(service.state().join("oci/.incoming")).expect("we are root").count(), 0);
    }
    // Saving writes where the client is; a full disk there leaves nothing of a file.
    let full = service.folder().join("full");
    fs::create_dir(&full).expect("the folder can be written");
    mount(Some("tmpfs"), &full, Some("tmpfs"), flags, Some("size=512k")).expect("we are root");
    let output = ampoule(&service, &["image", "save", "busybox", "--output", "full/busybox.tar"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left"), "{output:?}");
    assert_eq!(fs::read_dir(&full).expect("it is ours").count(), 0);
    umount(&full).expect("nobody uses it");
    assert_eq!(stdout(&service.run(&command(&["echo", "as before"]))), "as before\n");
    let small: Image = service.import(&large_root(1 << 20), "small");
    assert_eq!(small.layers, 1, "there is room for this one");
    // The mount is ours; all else that is left is the service's fault.
    service.kill(Signal::SIGTERM);
    umount(&service.state()).expect("nobody uses it");
}

#[test]
fn hostile_archives_are_refused_with_a_reason_and_leave_nothing() {
    let service = Service::start();
    let before = names(&service);
    let load = |body: &[u8]| service.send("POST", "/v1/images:load", &[("content-type", "application/x-tar")], body);
    let layout = |name: &str, content: &[u8]| {
        archive::Archive::default().file("oci-layout", 0o644, 0, b"{}").file(name, 0o644, 0, content).finish()
    };
    let digest = "a".repeat(64);
    let saved = Command::new(ampoule_program())
        .args(["image", "save", "busybox"])
        .env("AMPOULE_HOST", format!("unix://{}", service.socket().display()))
        .output()
        .expect("the program can be run")
        .stdout;
    for (what, body) in [
        ("nothing", Vec::new()),
        ("no archive", b"hello".to_vec()),
        ("a root", archive::busybox()),
        ("a lying name", layout(&format!("blobs/sha256/{digest}"), b"other")),
        ("no manifest", layout("index.json", br#"{"schemaVersion":2,"manifests":[]}"#)),
        ("cut off", saved[..saved.len() / 2].to_vec()),
        ("a bomb", archive::gzip(&layout("index.json", &vec![b' '; 100 << 20]))),
    ] {
        let answer = load(&body);
        assert_eq!(answer.status, 422, "{what}: {}", answer.text());
        assert_eq!(names(&service), before, "{what}");
        assert_eq!(fs::read_dir(service.state().join("oci/.incoming")).expect("we are root").count(), 0, "{what}");
    }
    let loaded: ImagesLoaded = load(&saved).expect_status(201).json();
    assert_eq!(loaded.images.len(), 1);
    let job = service.run(&JobRequest { image: loaded.images[0].digest.clone(), ..command(&["true"]) });
    assert_eq!(kind(&job), EndingKind::Exited);
}
