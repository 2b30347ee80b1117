//! What people see of a build, and where its result goes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use ampoule_client::types::{BuildEvent, JobRequest};
use ampoule_tests::builds::{build, build_folder, check_built, client, folder_of, said};
use ampoule_tests::registry::Registry;
use ampoule_tests::service::{command, stdout};
use ampoule_tests::{Options, Service, archive};

/// A step whose output would move a cursor, and one that is done at once.
const NOISY: &str = "FROM busybox\nRUN --network=none printf '\\033[2J\\033[31mred\\033[0m\\n10%%\\r99%%\\nlast'\n\
    RUN --network=none true\n";

fn written(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_pipe_gets_plain_lines_and_programs_get_json() {
    let service = Service::start();
    let plain = build(&service, &[("Dockerfile", NOISY)], &[]);
    check_built(&plain);
    let text = said(&plain);
    assert!(text.starts_with("#1 [stage-0 1/2] RUN --network=none printf"), "{text}");
    for line in
        [" red\n", " 99%\n", "#1 last\n", "#1 DONE 0.", "\n\n#2 [stage-0 2/2] RUN --network=none true\n#2 DONE 0."]
    {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "{text:?}");
    let json = build(&service, &[("Dockerfile", NOISY)], &["--progress=json"]);
    check_built(&json);
    assert_eq!(said(&json), "");
    let told: Vec<BuildEvent> =
        written(&json).lines().map(|line| serde_json::from_str(line).expect("each line is an event")).collect();
    assert!(matches!(told.last(), Some(BuildEvent::Built(_))), "{told:?}");
    assert_eq!(told.iter().filter(|event| matches!(event, BuildEvent::Cached { .. })).count(), 2);
    let quiet = build(&service, &[("Dockerfile", NOISY)], &["--progress=quiet"]);
    assert!(said(&quiet).is_empty() && written(&quiet).starts_with("sha256:"));
}

/// The command on a terminal of its own; what came there.
fn on_a_terminal(service: &Service, folder: &Path, flags: &str) -> (String, Option<i32>) {
    let program = ampoule_tests::ampoule_program();
    let line = format!(
        "stty cols 100 rows 40; {} --host unix://{} build {flags} {}",
        program.display(),
        service.socket().display(),
        folder.display()
    );
    // So called by util-linux: it gives a command a terminal, and writes down what comes.
    let output = Command::new("script").args(["-q", "-e", "-c", &line, "/dev/null"]).env("TERM", "xterm").output();
    let output = output.expect("script is on every Debian");
    (written(&output), output.status.code())
}

#[test]
fn a_terminal_shows_the_steps_that_run_and_then_one_line_of_each() {
    let service = Service::start();
    let dockerfile = "FROM busybox\nRUN --network=none for i in 1 2 3; do echo line $i; sleep 0.4; done\n\
        RUN --network=none printf 'why\\033[2J\\n'; exit 3\n";
    let folder = folder_of(&[("Dockerfile", dockerfile)]);
    let (text, code) = on_a_terminal(&service, folder.path(), "");
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "[+] Building ",
        " (1/2)",
        "=> => # line 2",
        "=> [stage-0 1/2] RUN --network=none for i in 1 2 3",
        "> [stage-0 2/2] RUN --network=none printf",
        "(1/2) FAILED",
        "why ",
        "------",
        "Dockerfile:3:1",
        "3 | >>> RUN --network=none printf",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}\n{text:?}");
    }
    assert!(!text.contains("\u{1b}[2J\r") && !text.contains("why\u{1b}"), "{text:?}");
    let (text, code) = on_a_terminal(&service, folder.path(), "--progress=plain");
    assert!(code == Some(1) && text.contains("#1 CACHED") && !text.contains("[+] Building"), "{text}");
}

#[test]
fn a_mistake_is_shown_with_its_line_and_its_column_as_a_check_shows_it() {
    let service = Service::start();
    let files = [("Dockerfile", "FROM busybox\nCOPY --from=later /ä /\n")];
    let folder = folder_of(&files);
    let built = build_folder(&service, folder.path(), &[]);
    let checked = build_folder(&service, folder.path(), &["--check"]);
    assert_eq!((built.status.code(), checked.status.code()), (Some(125), Some(0)), "{}", said(&built));
    let folder = folder_of(&[("Dockerfile", "FROM busybox\nUSER root\nCOPY --chmod=9 /ä /\n")]);
    let built = build_folder(&service, folder.path(), &[]);
    let checked = build_folder(&service, folder.path(), &["--check"]);
    assert_eq!((built.status.code(), checked.status.code()), (Some(1), Some(1)), "{}", said(&built));
    assert_eq!(said(&built), said(&checked));
    assert!(said(&built).contains("Dockerfile:3:14") && said(&built).contains("^\n"), "{}", said(&built));
}

#[test]
fn the_result_goes_where_its_outputs_say() {
    let service = Service::start();
    let files = [("Dockerfile", "FROM scratch\nCOPY . /d/\n"), ("a", "text")];
    let context = folder_of(&files);
    std::os::unix::fs::symlink("/etc/shadow", context.path().join("link")).expect("it is ours");
    fs::set_permissions(context.path().join("a"), PermissionsExt::from_mode(0o4755)).expect("it is ours");
    let out = tempfile::tempdir().expect("the temporary folder can be written");
    let at = |name: &str| out.path().join(name).to_string_lossy().into_owned();
    let flags = [
        "-t".to_owned(),
        "app:1".to_owned(),
        format!("-o={}", at("tree")),
        format!("-o=type=oci,dest={}", at("oci.tar")),
        format!("-o=type=docker,dest={}", at("docker.tar")),
        format!("--output=type=tar,dest={}", at("tree.tar")),
        "-o=type=image".to_owned(),
    ];
    check_built(&build_folder(&service, context.path(), &flags.each_ref().map(String::as_str)));
    let file = fs::symlink_metadata(out.path().join("tree/d/a")).expect("it is there");
    assert_eq!((file.mode() & 0o7777, file.len()), (0o755, 4));
    assert_eq!(fs::read_link(out.path().join("tree/d/link")).expect("a link"), Path::new("/etc/shadow"));
    let listed = |file: &str| {
        let output = Command::new("tar").args(["--list", "--file", &at(file)]).output().expect("tar is there");
        assert!(output.status.success(), "{}", said(&output));
        written(&output)
    };
    assert!(listed("tree.tar").contains("d/a\n"));
    assert!(listed("oci.tar").contains("oci-layout\n"));
    assert!(listed("docker.tar").contains("manifest.json\n"));
    let piped = build_folder(&service, context.path(), &["-o", "-"]);
    check_built(&piped);
    let tree = fs::read(at("tree.tar")).expect("it is there");
    assert_eq!(piped.stdout, tree, "nothing but the tar goes to standard output");
    let two = build_folder(&service, context.path(), &["-o", "-", "-o", "type=oci"]);
    assert_eq!(two.status.code(), Some(125));
    let unknown = build_folder(&service, context.path(), &["-o", "type=floppy"]);
    assert!(unknown.status.code() == Some(125) && said(&unknown).contains("floppy"), "{}", said(&unknown));
    drop(service);
    let other = Service::with(Options { without_image: true, ..Options::default() });
    for archive in ["oci.tar", "docker.tar"] {
        let loaded = client(&other, &["image", "load", "--input", &at(archive)]).output().expect("it can be run");
        check_built(&loaded);
        assert!(written(&loaded).contains("app:1"), "{}", written(&loaded));
    }
}

#[test]
fn bases_are_pulled_anew_when_asked_and_results_are_pushed() {
    let service = Service::with(Options { without_image: true, ..Options::default() });
    let registry = Registry::start();
    let root = archive::busybox();
    registry.contents.add_image("base", "1", &[&root]);
    let dockerfile =
        format!("FROM {}/base:1\nCMD [\"sh\", \"-c\", \"test -e /new && echo new || echo old\"]\n", registry.host());
    let app = format!("{}/app:1", registry.host());
    let built = |flags: &[&str]| {
        let output = build(&service, &[("Dockerfile", &dockerfile)], &[&["-t", &app], flags].concat());
        check_built(&output);
        let job = service.run(&JobRequest { image: app.clone(), ..command(&[]) });
        (stdout(&job).to_owned(), said(&output))
    };
    assert_eq!(built(&[]).0, "old\n");
    registry.contents.add_image(
        "base",
        "1",
        &[&root, &archive::Archive::default().file("new", 0o644, 0, b"").finish()],
    );
    assert_eq!(built(&[]).0, "old\n");
    assert!(registry.contents.manifest("app:1").is_none());
    let (said_new, told) = built(&["--pull", "--push"]);
    assert_eq!(said_new, "new\n");
    assert!(told.contains("pulling") && told.contains("pushed"), "{told}");
    assert!(registry.contents.manifest("app:1").is_some());
    let nameless = build(&service, &[("Dockerfile", &dockerfile)], &["--push"]);
    assert!(nameless.status.code() == Some(125) && said(&nameless).contains("--tag"), "{}", said(&nameless));
}
