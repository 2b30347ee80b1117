//! `RUN --mount`: what a command is shown comes from where it was said, what it writes goes where it may, secrets are seen
//! by nobody else, and nothing of a mount is left in the image.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ampoule_client::types::{BuildCache, BuildCacheList, BuildCachesRemoved};
use ampoule_tests::archive::Archive;
use ampoule_tests::builds::{build_folder, check_built, client, folder_of, follow, said, send};
use ampoule_tests::{Options, Service, patience};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// How long something may take to come.
const SETTLE_TIME: Duration = Duration::from_secs(20);

/// A context with this Dockerfile and these files.
fn context(dockerfile: &str, files: &[(&str, &str)]) -> TempDir {
    folder_of(&[&[("Dockerfile", dockerfile)], files].concat())
}

fn build(service: &Service, dockerfile: &str, files: &[(&str, &str)], flags: &[&str]) -> Output {
    build_folder(service, context(dockerfile, files).path(), flags)
}

fn start(service: &Service, folder: &TempDir) -> Child {
    let mut program = client(service, &[]);
    program.arg("build").arg(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    program.spawn().expect("the program can be run")
}

#[track_caller]
fn check_refused(output: &Output, expected: &[&str]) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in expected {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

fn caches(service: &Service) -> Vec<BuildCache> {
    service.get("/v1/builds/caches").json::<BuildCacheList>().caches
}

#[track_caller]
fn until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + patience(SETTLE_TIME);
    while !is_so() {
        assert!(Instant::now() < deadline, "it does not come");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until everything is counted that was used.
#[track_caller]
fn settle(service: &Service) {
    until(|| caches(service).iter().all(|cache| !cache.in_use && cache.size_bytes.is_some()));
}

#[test]
fn files_of_contexts_stages_and_images_are_shown_and_what_is_written_is_thrown_away() {
    let service = Service::start();
    let dockerfile = "FROM busybox AS made\n\
        RUN mkdir -p /out/sub && echo made > /out/sub/file && chown 7:8 /out/sub/file && ln -s sub/file /out/link\n\
        FROM scratch AS nothing\n\
        FROM busybox\n\
        RUN --mount=type=bind,target=/ctx test $(cat /ctx/a) = a && test -e /ctx/dir/c && ! touch /ctx/x && ! rm /ctx/a\n\
        RUN --mount=source=dir,target=/ctx,rw echo new > /ctx/new && rm /ctx/c && test $(cat /ctx/new) = new\n\
        RUN --mount=source=./dir/,target=ctx test $(cat /ctx/c) = c && test ! -e /ctx/new\n\
        RUN --mount=source=a,target=/etc/one test $(cat /etc/one) = a && ! echo x > /etc/one\n\
        RUN --mount=source=a,target=/etc/one,rw echo x > /etc/one && test $(cat /etc/one) = x\n\
        RUN --mount=from=made,source=out,target=/m test $(cat /m/sub/file) = made && test $(stat -c %u:%g /m/sub/file) = 7:8\n\
        RUN mkdir -p /srv && echo own > /srv/own\n\
        RUN --mount=from=made,source=/out/link,target=/srv/own test $(cat /srv/own) = made\n\
        RUN --mount=from=made,target=/m,rw rm -r /m/out && touch /m/x\n\
        RUN --mount=from=made,target=/m test -e /m/out/link && test ! -e /m/x\n\
        RUN --mount=from=busybox,source=/bin,target=/b --mount=type=tmpfs,target=/b2/deep /b/touch /b2/deep/x\n\
        RUN --mount=from=nothing,target=/n test -z \"$(ls /n)\"\n\
        RUN --mount=target=/w,rw --mount=type=cache,target=/w/deep/cache --mount=source=a,target=/w/file \
            touch /w/deep/cache/x && test $(cat /w/file) = a\n\
        RUN for it in /ctx /m /etc/one /b /b2 /n /w; do test ! -e $it || exit 1; done; test $(cat /srv/own) = own\n";
    let output = build(&service, dockerfile, &[("a", "a"), ("dir/c", "c")], &["-t", "app"]);
    check_built(&output);
    let other = build(&service, dockerfile, &[("a", "a"), ("dir/c", "other")], &["-t", "app"]);
    check_refused(&other, &["Dockerfile:7:1", "ended with 1"]);
}

#[test]
fn a_build_that_begins_while_another_gives_back_what_it_showed_is_not_held_up() {
    // One thread that serves: what waits on it for the launcher would wait for ever.
    let service = Service::start();
    let known: String = (0..6).map(|number| format!("RUN echo {number} > /{number}\n")).collect();
    for round in 0..12 {
        let dockerfile = format!("FROM busybox\n{known}RUN --mount=target=/m test $(cat /m/round) = {round}\n");
        check_built(&build(&service, &dockerfile, &[("round", &round.to_string())], &["-t", "app"]));
    }
}

#[test]
fn no_link_leads_out_of_a_source_or_a_root() {
    let service = Service::start();
    let folder = context("FROM busybox\nRUN --mount=source=evil,target=/m true\n", &[]);
    symlink("/etc", folder.path().join("evil")).expect("it is ours");
    check_refused(&build_folder(&service, folder.path(), &[]), &["Dockerfile:2:1", "evil"]);
    let made = "FROM busybox AS made\nRUN ln -s ../../../../../../../var/lib/dpkg/status /up && ln -s /loop /loop && mkfifo /pipe \
        && ln -s /proc/self/root /self && mkdir /d && ln -s /d/.. /top\n";
    for (source, expected) in [
        ("/up", "is not there"),
        ("/loop", "leads nowhere"),
        ("/pipe", "neither a file nor a folder"),
        ("/self", "is not there"),
        ("/nothing", "is not there"),
        ("/../../../var/lib/dpkg/status", "is not there"),
    ] {
        let dockerfile = format!("{made}FROM busybox\nRUN --mount=from=made,source={source},target=/m true\n");
        check_refused(&build(&service, &dockerfile, &[], &[]), &["Dockerfile:4:1", expected]);
    }
    // What a link stands for within the stage is there, and no more.
    let dockerfile = format!("{made}FROM busybox\nRUN --mount=from=made,source=/top,target=/m test -L /m/up\n");
    check_built(&build(&service, &dockerfile, &[], &[]));
    for (link, target, expected) in [
        ("ln -s / /r", "/r", "a link to the root"),
        ("ln -s ../../../.. /r", "/r", "a link to the root"),
        ("ln -s loop /loop", "/loop/x", "loop"),
        ("touch /file", "/file/x", "no folder"),
        ("touch /file", "/file", "not a folder"),
        ("true", "/proc/x", "nothing can be mounted"),
        ("true", "/x/../dev", "nothing can be mounted"),
    ] {
        let dockerfile = format!("FROM busybox\nRUN {link}\nRUN --mount=type=cache,target={target} true\n");
        check_refused(&build(&service, &dockerfile, &[], &[]), &["Dockerfile:3:1", expected]);
    }
    // Links within the root are followed, and stay what they are.
    let dockerfile = "FROM busybox\nRUN mkdir -p /srv/real && ln -s srv /s && ln -s /../../s/real /abs\n\
        RUN --mount=type=cache,target=/abs/in/cache touch /srv/real/in/cache/x && test -e /abs/in/cache/x\n\
        RUN test -L /s && test -L /abs && test -z \"$(ls -A /srv/real)\"\n";
    check_built(&build(&service, dockerfile, &[], &[]));
    let dockerfile = "FROM busybox\nRUN --mount=target=/m --mount=type=cache,target=/m/cache true\n";
    check_refused(&build(&service, dockerfile, &[], &[]), &["Dockerfile:2:1", "read-only", "hint:", "rw"]);
}

#[test]
fn a_cache_is_kept_counted_shown_and_removed() {
    let service = Service::start();
    let write = "FROM busybox\nRUN --mount=type=cache,target=/c,id=../../../../tmp/x dd if=/dev/zero of=/c/big bs=1M count=2 \
        && chown 7:8 /c/big && mkdir /c/sub && test $(stat -c %u:%g:%a /c) = 0:0:755\n\
        RUN --mount=type=cache,target=/c,uid=7,gid=8,mode=2750 test $(stat -c %u:%g:%a /c) = 7:8:2750 && touch /c/own\n\
        RUN test ! -e /c\n";
    check_built(&build(&service, write, &[], &[]));
    let read = "FROM busybox\nRUN --mount=type=cache,target=/d,id=../../../../tmp/x,ro test $(stat -c %u:%g:%s /d/big) = 7:8:2097152 \
        && ! touch /d/x\nRUN --mount=type=cache,target=/c test ! -e /c/own\n";
    check_built(&build(&service, read, &[], &[]));
    settle(&service);
    let names = fs::read_dir(service.state().join("caches")).expect("we are root");
    for name in names.map(|entry| entry.expect("it can be read").file_name().into_string().expect("it is text")) {
        assert!(name.ends_with("-0") && name[..64].bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    }
    let list = caches(&service);
    let big = list.iter().find(|cache| cache.id == "../../../../tmp/x").expect("it is in the list");
    assert!(big.size_bytes.is_some_and(|bytes| (2 << 20..3 << 20).contains(&bytes)), "{big:?}");
    assert_eq!(list.iter().filter(|cache| cache.id == "/c").count(), 2);
    let shown = client(&service, &[]).args(["builder", "du"]).output().expect("the program can be run");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("../../../../tmp/x\t2.0 MiB\t"), "{shown:?}");
    let path = "/v1/builds/caches?id=..%2F..%2F..%2F..%2Ftmp%2Fx";
    let removed: BuildCachesRemoved = service.send("DELETE", path, &[], b"").expect_status(200).json();
    assert_eq!((removed.removed.len(), removed.kept.len(), removed.freed_bytes), (1, 0, big.size_bytes.unwrap_or(0)));
    assert_eq!(caches(&service).len(), list.len() - 1);
    let pruned = client(&service, &[]).args(["builder", "prune", "--force"]).output().expect("the program can be run");
    assert!(pruned.status.success() && caches(&service).is_empty(), "{pruned:?}");
    assert_eq!(fs::read_dir(service.state().join("caches")).expect("we are root").count(), 0);
    service.send("DELETE", "/v1/builds/caches?ID=x", &[], b"").expect_status(400);
}

#[test]
fn a_cache_that_starts_with_files_keeps_what_is_added_to_them() {
    let service = Service::start();
    let step = |command: &str| {
        format!(
            "FROM busybox AS made\nRUN mkdir -p /out/sub && echo made > /out/sub/file\nFROM busybox\n\
            RUN --mount=type=cache,id=x,from=made,source=/out,target=/c {command}\n"
        )
    };
    check_built(&build(
        &service,
        &step("test $(cat /c/sub/file) = made && echo new > /c/new && rm /c/sub/file"),
        &[],
        &[],
    ));
    check_built(&build(
        &service,
        &step("test $(cat /c/new) = new && test -d /c/sub && test ! -e /c/sub/file"),
        &[],
        &[],
    ));
    let twice = "FROM busybox\nRUN --mount=type=cache,source=/x,target=/c true\n";
    check_refused(&build(&service, twice, &[], &[]), &["Dockerfile:2:1", "from"]);
}

/// Two builds at a time, whose commands share the cache `signals`.
#[track_caller]
fn check_together(service: &Service, first: &str, second: &str) {
    let context =
        |command: &str| context(&format!("FROM busybox\nRUN --mount=type=cache,id=signals,target=/s {command}\n"), &[]);
    let contexts = [context(first), context(second)];
    let builds = contexts.each_ref().map(|folder| start(service, folder));
    for build in builds {
        check_built(&build.wait_with_output().expect("it is our child"));
    }
}

#[test]
fn two_builds_at_once_share_a_cache_as_it_was_said() {
    let service = Service::start();
    let wait =
        |name: &str| format!("for i in $(seq 300); do test -e /s/{name} && break; sleep 0.1; done; test -e /s/{name}");
    let shared = |own: &str, other: &str| {
        let meet = "for i in $(seq 300); do test -e /c/OTHER && break; sleep 0.1; done; test -e /c/OTHER";
        format!("--mount=type=cache,id=shared,target=/c touch /c/{own}; {}", meet.replace("OTHER", other))
    };
    check_together(&service, &shared("a", "b"), &shared("b", "a"));
    let private = |own: &str, other: &str| {
        let wait = wait(&format!("p{other}"));
        format!(
            "--mount=type=cache,id=private,sharing=private,target=/c touch /c/{own} /s/p{own}; {wait} && test ! -e /c/{other}"
        )
    };
    check_together(&service, &private("a", "b"), &private("b", "a"));
    let locked = |own: &str| {
        format!(
            "--mount=type=cache,id=locked,sharing=locked,target=/c test ! -e /c/busy && touch /c/busy && sleep 1 \
            && rm /c/busy && touch /c/{own}"
        )
    };
    check_together(&service, &locked("a"), &locked("b"));
    settle(&service);
    let count = |id: &str| caches(&service).iter().filter(|cache| cache.id == id).count();
    assert_eq!((count("shared"), count("private"), count("locked")), (1, 2, 1));
    let both = "FROM busybox\nRUN --mount=type=cache,id=locked,target=/c test -e /c/a && test -e /c/b\n";
    check_built(&build(&service, both, &[], &[]));
}

#[test]
fn caches_that_take_too_much_make_room() {
    let arguments = vec!["--build-cache-bytes".to_owned(), "3000000".to_owned()];
    let service = Service::with(Options { arguments, ..Options::default() });
    let fill = |id: &str, blocks: u32| {
        let dockerfile = format!(
            "FROM busybox\nRUN --mount=type=cache,id={id},target=/c dd if=/dev/zero of=/c/x bs=1M count={blocks}\n"
        );
        check_built(&build(&service, &dockerfile, &[], &[]));
        settle(&service);
    };
    let ids = || caches(&service).into_iter().map(|cache| cache.id).collect::<Vec<_>>();
    fill("first", 1);
    fill("second", 1);
    assert_eq!(ids().len(), 2);
    fill("third", 1);
    until(|| ids().len() == 2);
    assert!(!ids().contains(&"first".to_owned()), "{:?}", ids());
    fill("large", 4);
    until(|| !ids().contains(&"large".to_owned()));
    assert_eq!(ids().len(), 2);
}

/// Files below a folder that have these bytes in them.
fn files_with(folder: &Path, bytes: &[u8], found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("we are root") {
        let path = entry.expect("it can be read").path();
        let kind = fs::symlink_metadata(&path).expect("it is there").file_type();
        if kind.is_dir() {
            files_with(&path, bytes, found);
        } else if kind.is_file() && fs::read(&path).is_ok_and(|text| text.windows(bytes.len()).any(|it| it == bytes)) {
            found.push(path.display().to_string());
        }
    }
}

#[test]
fn a_secret_is_seen_by_its_command_and_by_nobody_else() {
    let service = Service::start();
    // Not as it stands here, so that the check of the command does not hold it.
    let value = ["swordfish", "0451", "hush"].join("-");
    let sum = {
        use std::io::Write;
        let mut program =
            Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it is there");
        program.stdin.take().expect("it is a pipe").write_all(value.as_bytes()).expect("it reads");
        let output = program.wait_with_output().expect("it is our child");
        String::from_utf8_lossy(&output.stdout[..64]).into_owned()
    };
    let dockerfile = format!(
        "FROM busybox\nARG SUM={sum}\n\
        RUN --mount=type=secret,id=token test $(sha256sum < /run/secrets/token | cut -c -64) = $SUM \
            && test $(stat -c %u:%g:%a /run/secrets/token) = 0:0:400 && ! echo x >> /run/secrets/token\n\
        RUN --mount=type=secret,id=token,target=/etc/deep/key,uid=7,gid=8,mode=0440,required \
            test $(stat -c %u:%g:%a /etc/deep/key) = 7:8:440 && test ! -e /run/secrets\n\
        RUN --mount=type=secret,id=token,env=TOKEN test $(echo -n $TOKEN | sha256sum | cut -c -64) = $SUM && test ! -e /run/secrets\n\
        RUN --mount=type=secret,id=token,env= --mount=type=secret,id=other,target=/run/x \
            test $(echo -n $token | sha256sum | cut -c -64) = $SUM && test $(cat /run/x) = second\n\
        RUN --mount=type=secret,id=absent test ! -e /run/secrets/absent\n\
        RUN test ! -e /run/secrets && test ! -e /etc/deep && test -z \"$TOKEN$token\"\n"
    );
    let folder = context(&dockerfile, &[]);
    let secrets = tempfile::tempdir().expect("the temporary folder can be written");
    fs::write(secrets.path().join("token"), &value).expect("it is ours");
    let file = format!("id=token,src={}", secrets.path().join("token").display());
    let mut program = client(&service, &[]);
    program.args(["build", "-t", "app", "--secret", &file, "--secret", "id=other,env=OTHER"]).env("OTHER", "second");
    let output = program.arg(folder.path()).output().expect("the program can be run");
    check_built(&output);
    assert!(!said(&output).contains(&value));
    let history = service.get("/v1/images:history?reference=app").text();
    let base64 = {
        use base64::Engine as _;
        // Without what an address would escape.
        base64::prelude::BASE64_STANDARD.encode(&value).trim_end_matches('=').to_owned()
    };
    for text in [&value, &base64] {
        let mut found = Vec::new();
        files_with(&service.state(), text.as_bytes(), &mut found);
        assert!(found.is_empty(), "{found:?}");
        assert!(!service.log().contains(text) && !history.contains(text));
    }
}

#[test]
fn what_cannot_be_given_is_told_with_its_place_before_anything_runs() {
    let service = Service::start();
    let missing = "FROM busybox\nRUN echo ran\n\nRUN --mount=type=secret,id=token,required true\n";
    let output = build(&service, missing, &[], &[]);
    check_refused(&output, &["Dockerfile:4:1", "`token` was not given", "--secret id=token"]);
    assert!(!said(&output).contains("DONE"), "{}", said(&output));
    let agent = "FROM busybox\nRUN --mount=type=ssh true\n";
    check_refused(&build(&service, agent, &[], &[]), &["Dockerfile:2:1", "type=ssh", "cannot be done yet"]);
    let binary = tempfile::tempdir().expect("the temporary folder can be written");
    fs::write(binary.path().join("key"), b"a\0b").expect("it is ours");
    let flag = format!("id=key,src={}", binary.path().join("key").display());
    let variable = "FROM busybox\nRUN --mount=type=secret,id=key,env=KEY true\n";
    check_refused(&build(&service, variable, &[], &["--secret", &flag]), &["Dockerfile:2:1", "cannot be a variable"]);
    let parts: [(&str, &[u8]); 2] = [("request", br#"{"secrets": {"x": "no base64!"}}"#), ("context", b"")];
    let answer = send(&service, &parts);
    assert!(answer.expect_status(422).text().contains("is not base64"));
}

#[test]
fn a_service_that_is_killed_while_a_step_uses_a_cache_leaves_it_usable() {
    let mut service = Service::start();
    let dockerfile = b"FROM busybox\nRUN --mount=type=cache,target=/c --mount=type=cache,from=busybox,target=/f \
        touch /c/x /f/x; echo up; sleep 600\n";
    let tar = Archive::default().file("Dockerfile", 0o644, 0, dockerfile).finish();
    let answer = follow(&service, &serde_json::json!({}), &tar);
    let mut events = answer.lines().map_while(Result::ok);
    assert!(events.any(|line| line.contains("\"up")), "the command does not run");
    assert!(caches(&service).iter().all(|cache| cache.in_use));
    let kept: BuildCachesRemoved = service.send("DELETE", "/v1/builds/caches", &[], b"").expect_status(200).json();
    assert_eq!((kept.removed.len(), kept.kept.len()), (0, 2));
    service.kill(Signal::SIGKILL);
    service.spawn();
    settle(&service);
    assert_eq!(caches(&service).len(), 2);
    until(|| {
        let entries = fs::read_dir(service.state().join("layers")).expect("we are root");
        entries.filter_map(Result::ok).all(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
    });
    let again = "FROM busybox\nRUN --mount=type=cache,target=/c --mount=type=cache,from=busybox,target=/f \
        test -e /c/x && test -e /f/x && test -e /f/bin/sh\n";
    check_built(&build(&service, again, &[], &[]));
}
