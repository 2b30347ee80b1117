//! What Ampoule writes other engines take, and the reverse: archives of images and flat file systems, with docker's own
//! daemon and with podman.

use std::path::Path;
use std::process::{Command, Output};

use ampoule_client::types::{EndingKind, Image, JobRequest};
use ampoule_tests::docker::Daemon;
use ampoule_tests::service::{command, kind, stdout};
use ampoule_tests::{Service, ampoule_program};

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn ampoule(service: &Service, arguments: &[&str]) -> String {
    let mut command = Command::new(ampoule_program());
    command.args(arguments).current_dir(service.folder());
    command.env("AMPOULE_HOST", format!("unix://{}", service.socket().display()));
    done(&command.output().expect("the program can be run"))
}

#[track_caller]
fn docker(daemon: &Daemon, folder: &Path, arguments: &[&str]) -> String {
    done(&daemon.command().args(arguments).current_dir(folder).output().expect("docker is installed by `make setup`"))
}

/// The digest of an image's config, which is what docker and podman call the image.
fn config_of(service: &Service, name: &str) -> String {
    let image: Image = service.get(&format!("/v1/images/{name}")).json();
    image.details.expect("a single image comes with its details").config_digest
}

fn prints_hello(daemon: &Daemon, folder: &Path, image: &str) {
    let run = ["run", "--rm", "--network=none", image, "/bin/echo", "hello"];
    assert_eq!(docker(daemon, folder, &run), "hello\n");
}

#[test]
fn docker_loads_what_is_saved_and_what_docker_saves_is_loaded() {
    let service = Service::start();
    let folder = service.folder();
    let daemon = Daemon::start(&folder.join("docker")).expect("docker.io is installed by `make setup`");
    let config = config_of(&service, "busybox");
    ampoule(&service, &["image", "tag", "busybox", "host:5000/box:1"]);
    for (format, compression) in [("docker-archive", None), ("docker-archive", Some("gzip"))] {
        let file = format!("{format}-{}.tar", compression.unwrap_or("plain"));
        let mut save = vec!["image", "save", "busybox", "host:5000/box:1", "--format", format, "--output", &file];
        save.extend(compression.into_iter().flat_map(|compression| ["--compress", compression]));
        ampoule(&service, &save);
        let loaded = docker(&daemon, folder, &["load", "--input", &file]);
        assert!(loaded.contains("busybox:latest") && loaded.contains("host:5000/box:1"), "{loaded}");
        let id = docker(&daemon, folder, &["image", "inspect", "--format", "{{.Id}}", "host:5000/box:1"]);
        assert_eq!(id.trim(), config, "{file}");
        prints_hello(&daemon, folder, "busybox");
        docker(&daemon, folder, &["image", "rm", "busybox", "host:5000/box:1"]);
    }
    docker(&daemon, folder, &["load", "--input", "docker-archive-plain.tar"]);
    docker(&daemon, folder, &["tag", "busybox", "theirs:1"]);
    docker(&daemon, folder, &["save", "theirs:1", "--output", "theirs.tar"]);
    ampoule(&service, &["image", "load", "--input", "theirs.tar"]);
    assert_eq!(config_of(&service, "theirs:1"), config);
    let job = service.run(&JobRequest { image: "theirs:1".to_owned(), ..command(&["/bin/echo", "hello"]) });
    assert_eq!((kind(&job), stdout(&job)), (EndingKind::Exited, "hello\n"));
    // The daemon goes first: the service looks for what is left in its folder.
    drop(daemon);
}

#[test]
fn docker_imports_what_is_exported_and_what_docker_exports_is_imported() {
    let service = Service::start();
    let folder = service.folder();
    let daemon = Daemon::start(&folder.join("docker")).expect("docker.io is installed by `make setup`");
    ampoule(&service, &["image", "export", "busybox", "--output", "flat.tar"]);
    docker(&daemon, folder, &["import", "flat.tar", "flat:1"]);
    prints_hello(&daemon, folder, "flat:1");
    let names = docker(&daemon, folder, &["run", "--rm", "--network=none", "flat:1", "/bin/ls", "-ln", "/home"]);
    assert!(names.contains("drwx------") && names.contains("1000     1000"), "{names}");
    let container = docker(&daemon, folder, &["create", "flat:1", "/bin/true"]);
    docker(&daemon, folder, &["export", container.trim(), "--output", "theirs.tar"]);
    ampoule(&service, &["image", "import", "theirs.tar", "--name", "theirs:1"]);
    let job = service.run(&JobRequest { image: "theirs:1".to_owned(), ..command(&["/bin/echo", "hello"]) });
    assert_eq!((kind(&job), stdout(&job)), (EndingKind::Exited, "hello\n"));
    docker(&daemon, folder, &["rm", container.trim()]);
    drop(daemon);
}

#[test]
fn podman_loads_what_is_saved() {
    let service = Service::start();
    let folder = service.folder();
    let image: Image = service.get("/v1/images/busybox").json();
    let config = config_of(&service, "busybox");
    ampoule(&service, &["image", "save", "busybox", "--output", "docker.tar"]);
    ampoule(&service, &["image", "save", "busybox", "--format", "oci-archive", "--output", "oci.tar"]);
    let podman = |arguments: &[&str]| {
        let mut command = Command::new("podman");
        // Without a mount of its own: what is there is looked at, and nothing is run.
        command.args(["--root", "podman/root", "--runroot", "podman/run", "--storage-driver", "vfs"]);
        command.args(["--cgroup-manager=cgroupfs", "--events-backend=none"]).args(arguments).current_dir(folder);
        done(&command.output().expect("podman is installed by `make setup`"))
    };
    for (file, digest) in [("docker.tar", None), ("oci.tar", Some(&image.digest))] {
        podman(&["load", "--input", file]);
        let name = "docker.io/library/busybox:latest";
        let id = podman(&["image", "inspect", "--format", "{{.Id}}", name]);
        assert_eq!(format!("sha256:{}", id.trim()), config, "{file}");
        if let Some(digest) = digest {
            assert_eq!(podman(&["image", "inspect", "--format", "{{.Digest}}", name]).trim(), digest);
        }
        podman(&["image", "rm", name]);
    }
}
