//! Images are built from Dockerfiles: by the command line and over HTTP, in sandboxes, and nothing is left of a build
//! that failed, was given up or was killed.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use ampoule_client::types::{BuildEvent, JobRequest};
use ampoule_tests::builds::{build, build_folder, check_built, client, events, folder_of, follow, said, tar_of};
use ampoule_tests::service::{command, stdout};
use ampoule_tests::{Options, Service, archive, patience};
use nix::sys::signal::Signal;
use serde_json::json;

/// How long something may take to go.
const SETTLE_TIME: Duration = Duration::from_secs(20);

/// What the image's own command prints.
fn runs(service: &Service, image: &str, argv: &[&str]) -> String {
    let job = service.run(&JobRequest { image: image.to_owned(), ..command(argv) });
    stdout(&job).to_owned()
}

/// Folders of layers that are not whole.
fn drafts(service: &Service) -> Vec<String> {
    let entries = fs::read_dir(service.state().join("layers")).expect("we are root");
    let names = entries.map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with('.')).collect()
}

fn check_no_drafts(service: &Service) {
    let deadline = Instant::now() + patience(SETTLE_TIME);
    while !drafts(service).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", drafts(service));
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn stages_are_built_named_and_run_and_the_second_time_nothing_is_done() {
    let service = Service::start();
    let dockerfile = "FROM busybox AS made\nRUN echo made > /made && ln /made /twice\n\
        FROM busybox\nENV WORD=hello\nWORKDIR /srv\nCOPY --from=made /made /made\nCOPY --chown=7:8 --chmod=640 a b/c ./\n\
        RUN rm /bin/vi; echo $WORD $(cat /made) > said\nUSER 7\nCMD [\"cat\", \"said\"]\n";
    let files =
        [("Dockerfile", dockerfile), ("a", "a"), ("b/c", "c"), ("ignored", "x"), (".dockerignore", "ignored\n")];
    let first = build(&service, &files, &["-t", "app", "-t", "app:2"]);
    check_built(&first);
    assert_eq!(runs(&service, "app", &["cat", "said"]), "hello made\n");
    assert_eq!(runs(&service, "app:2", &["stat", "-c", "%u:%g %a", "a", "c"]), "7:8 640\n7:8 640\n");
    assert_eq!(runs(&service, "app", &["sh", "-c", "test ! -e /bin/vi && pwd && id -u"]), "/srv\n7\n");
    let again = build(&service, &files, &["-t", "app"]);
    check_built(&again);
    let text = said(&again);
    assert_eq!(text.matches(" CACHED\n").count(), 5, "{text}");
    assert_eq!(first.stdout, again.stdout, "it is the same image");
    let changed = build(&service, &[&files[..2], &[("a", "other"), ("b/c", "c")]].concat(), &["-t", "app"]);
    assert_eq!(said(&changed).matches(" CACHED\n").count(), 3, "{}", said(&changed));
    assert_eq!(runs(&service, "app", &["cat", "a"]), "other");
}

#[test]
fn a_step_that_fails_tells_its_place_and_leaves_no_image() {
    let service = Service::start();
    let output =
        build(&service, &[("Dockerfile", "FROM busybox\nRUN echo good\nRUN echo why >&2; exit 3\n")], &["-t", "app"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(" why\n") && text.contains("ended with 3") && text.contains("Dockerfile:3:1"), "{text}");
    service.send("GET", "/v1/images/app", &[], b"").expect_status(404);
    check_no_drafts(&service);
    for (dockerfile, expected) in [
        ("FROM busybox\nFORM x\n", "Dockerfile:2:1"),
        ("FROM busybox\nCOPY nothing /\n", "Dockerfile:2:1"),
        ("FROM busybox\nRUN --mount=type=ssh true\n", "Dockerfile:2:1"),
    ] {
        let output = build(&service, &[("Dockerfile", dockerfile)], &[]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(expected), "{}", said(&output));
    }
}

#[test]
fn packages_users_and_owners_can_be_made_in_a_debian_and_the_host_is_out_of_reach() {
    let service = Service::with(Options { without_image: true, ..Options::default() });
    let mut tar = Vec::new();
    std::io::Read::read_to_end(&mut archive::debian(), &mut tar).expect("it can be read");
    service.import(&tar, "debian");
    let dockerfile = "FROM debian\nRUN useradd --create-home bob && chown bob:bob /srv && dpkg --version > /dev/null\n\
        RUN dpkg --configure -a && dpkg-divert --add /etc/x && chmod 4755 /srv\n\
        RUN ! mount -t tmpfs none /mnt && ! mknod /dev/x b 8 0 && ! unshare -U true && ! chroot / true\n\
        USER bob\nRUN ! touch /x && touch ~/mine\n";
    check_built(&build(&service, &[("Dockerfile", dockerfile)], &["-t", "app"]));
    let owner = JobRequest { image: "app".to_owned(), ..command(&["stat", "-c", "%U %a", "/srv", "/home/bob/mine"]) };
    assert_eq!(stdout(&service.run(&owner)), "bob 4755\nbob 644\n");
}

#[test]
fn a_link_out_of_the_context_is_copied_as_a_link() {
    let service = Service::start();
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    fs::write(folder.path().join("Dockerfile"), "FROM busybox\nCOPY . /srv/\n").expect("it is ours");
    std::os::unix::fs::symlink("/etc/shadow", folder.path().join("link")).expect("it is ours");
    check_built(&build_folder(&service, folder.path(), &["-t", "app"]));
    assert_eq!(runs(&service, "app", &["readlink", "/srv/link"]), "/etc/shadow\n");
}

#[test]
fn whoever_hangs_up_stops_the_build() {
    let service = Service::start();
    let tar = tar_of(&[("Dockerfile", "FROM busybox\nRUN echo up; sleep 600\n")]);
    let answer = follow(&service, &json!({}), &tar);
    assert_eq!(answer.status, 200);
    let mut events = answer.lines().map_while(Result::ok);
    assert!(events.any(|line| line.contains("\"up")), "the command does not run");
    drop(events);
    check_no_drafts(&service);
    let deadline = Instant::now() + patience(SETTLE_TIME);
    let sleeps = || ampoule_tests::host::descendants(service.launcher().as_raw()).iter().any(|it| it.name == "sleep");
    while sleeps() {
        assert!(Instant::now() < deadline, "the command is still there");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_service_that_is_killed_in_a_step_leaves_no_half_layer() {
    let mut service = Service::start();
    let tar = tar_of(&[("Dockerfile", "FROM busybox\nRUN echo half > /x; echo up; sleep 600\n")]);
    let answer = follow(&service, &json!({}), &tar);
    let mut events = answer.lines().map_while(Result::ok);
    assert!(events.any(|line| line.contains("\"up")), "the command does not run");
    service.kill(Signal::SIGKILL);
    service.spawn();
    check_no_drafts(&service);
    check_built(&build(&service, &[("Dockerfile", "FROM busybox\nRUN test ! -e /x\n")], &[]));
}

#[test]
fn equal_inputs_and_a_date_give_equal_digests_on_two_services() {
    let digest = || {
        let service = Service::start();
        let dockerfile = "FROM busybox\nRUN mkdir /d && echo x > /d/f && ln -s f /d/l\nCOPY a /srv/\nLABEL x=y\n";
        let tar = tar_of(&[("Dockerfile", dockerfile), ("a", "a")]);
        let mut text = String::new();
        let mut answer = follow(&service, &json!({"source_date_epoch": 1_700_000_000}), &tar);
        std::io::Read::read_to_string(&mut answer, &mut text).expect("it is text");
        match events(&text).pop() {
            Some(BuildEvent::Built(result)) => result.image.digest,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(digest(), digest());
}

#[test]
fn a_build_that_does_not_come_out_the_same_twice_is_told_by_its_first_difference() {
    let service = Service::start();
    let prove = |run: &str, epoch: Option<&str>| {
        let folder = folder_of(&[("Dockerfile", &format!("FROM busybox\nRUN --network=none {run}\n"))]);
        let mut program = client(&service, &["build", "--prove-reproducible", "-t", "app"]);
        program.env_remove("SOURCE_DATE_EPOCH").envs(epoch.map(|epoch| ("SOURCE_DATE_EPOCH", epoch)));
        program.arg(folder.path()).output().expect("the program can be run")
    };
    let same = prove("echo the same > /made", Some("1700000000"));
    check_built(&same);
    assert!(said(&same).contains("reproducible: the second build is sha256:"), "{}", said(&same));
    let other = prove("head -c 20 /dev/urandom > /made; echo kept > /a", Some("1700000000"));
    assert_eq!(other.status.code(), Some(1), "{}", said(&other));
    assert!(said(&other).contains("the first difference: changed  /made"), "{}", said(&other));
    let clock = prove("true", None);
    assert!(
        said(&clock).contains("depends on the clock") && said(&clock).contains("SOURCE_DATE_EPOCH="),
        "{}",
        said(&clock)
    );
}
