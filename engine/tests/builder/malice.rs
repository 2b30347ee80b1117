//! Dockerfiles and contexts that are made to harm: each is refused or done soon, with a sentence and a place.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use ampoule_engine::builder::check::check;
use ampoule_engine::builder::context::{Context, Kind, Limits};
use ampoule_engine::builder::dockerfile::{self, FILE_BYTES_MAX, LINE_BYTES_MAX};
use ampoule_engine::builder::ignore::Ignore;
use ampoule_engine::builder::plan::{BaseFacts, ImageSource, Options, Platform, plan};
use ampoule_engine::builder::source::{Complaint, Source};
use ampoule_engine::image::digest::Digest;

/// What anything here may take in a build without optimisation, on a machine that is busy.
const SOON: Duration = Duration::from_secs(30);

/// Reads, plans and checks.
fn build(text: &str, options: &Options) -> Result<(), Complaint> {
    let start = Instant::now();
    let source = Source::new("Dockerfile", text);
    let done = dockerfile::parse(&source).and_then(|file| {
        let plan = plan(&source, &file, options)?;
        check(&file, options, &plan, None).render(&source);
        Ok(())
    });
    if let Err(complaint) = &done {
        assert!(source.excerpt(complaint.span).len() < 20_000);
    }
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    done
}

#[track_caller]
fn check_refused(text: &str, because: &str) {
    let complaint = build(text, &Options::default()).expect_err("it is refused");
    assert!(complaint.message.contains(because), "{}", complaint.message);
}

#[test]
fn lines_instructions_and_files_have_a_longest() {
    check_refused(&format!("FROM scratch\nRUN {}\n", "x".repeat(LINE_BYTES_MAX)), "the line has more than");
    check_refused(
        &format!("FROM scratch\nRUN {}\n", format!("{}\\\n", "x".repeat(60_000)).repeat(30)),
        "the instruction has more than",
    );
    check_refused(&"#".repeat(FILE_BYTES_MAX + 1), "the file has more than");
    check_refused(&"RUN x\n".repeat(1_000_000), "the file has more than");
    check_refused(&format!("FROM scratch\n{}", "RUN x\n".repeat(500_000)), "instructions");
    check_refused(&format!("FROM scratch\n{}", "FROM scratch\n".repeat(5000)), "stages");
    check_refused(&format!("FROM scratch\nRUN {}\n", "<<E ".repeat(1000)), "heredocs");
    check_refused(&format!("FROM scratch\nCOPY {}\n", "a ".repeat(30_000)), "words");
    check_refused(&format!("FROM scratch\nRUN {}x\n", "--x ".repeat(10_000)), "flags");
    check_refused(&format!("FROM scratch\nRUN --mount={}x x\n", "ro,".repeat(10_000)), "options");
}

#[test]
fn values_that_double_at_every_line_are_stopped() {
    let doubling = "ENV A=$A$A\n".repeat(60);
    check_refused(&format!("FROM scratch\nENV A=xx\n{doubling}"), "bytes");
    let long = "x".repeat(30_000);
    let many: String = (0..60).map(|number| format!("ENV A{number}={long}\n")).collect();
    check_refused(&format!("FROM scratch\n{many}"), "the environment has more than");
    let some: String = (0..20).map(|number| format!("ENV A{number}={long}\n")).collect();
    check_refused(&format!("FROM scratch\n{some}{}", "RUN x\n".repeat(5000)), "the steps come to more than");
}

#[test]
fn long_chains_of_stages_are_planned_and_circles_are_not() {
    let chain: String = (1..1000).map(|stage| format!("FROM s{} AS s{stage}\nRUN x\n", stage - 1)).collect();
    build(&format!("FROM scratch AS s0\n{chain}"), &Options::default()).expect("a chain is fine");
    let all: String = (0..900).map(|stage| format!("COPY --from=s{stage} /a /a\n")).collect();
    let star: String = (0..900).map(|stage| format!("FROM scratch AS s{stage}\n")).collect();
    build(&format!("{star}FROM scratch\n{all}"), &Options::default()).expect("many needs are fine");
    let circle: String =
        (0..500).map(|stage| format!("FROM scratch AS s{stage}\nCOPY --from=s{} /a /a\n", (stage + 1) % 500)).collect();
    check_refused(&circle, "need each other");
}

#[test]
fn triggers_cannot_multiply_without_end() {
    let triggers = "ONBUILD RUN x\n".repeat(900);
    let users = "FROM base\n".repeat(900);
    check_refused(&format!("FROM scratch AS base\n{triggers}{users}"), "steps");
    let reference = "docker.io/library/bomb:latest".to_owned();
    let image = ImageSource { reference, platform: Platform::own() };
    let facts = BaseFacts {
        digest: Digest::of(b""),
        platform: Platform::own(),
        env: Vec::new(),
        working_dir: None,
        user: None,
        shell: Vec::new(),
        on_build: vec!["RUN x".to_owned(); 100_000],
    };
    let options = Options { bases: [(image, facts)].into(), ..Options::default() };
    let complaint = build("FROM bomb\n", &options).expect_err("it is refused");
    assert!(complaint.message.contains("ONBUILD triggers"), "{complaint}");
}

#[test]
fn a_terminal_is_never_sent_what_moves_its_cursor() {
    let source = Source::new("Dockerfile", "FROM \u{1b}[2Jx\n");
    let file = dockerfile::parse(&source).expect("it is words");
    let complaint = plan(&source, &file, &Options::default()).expect_err("no image has this name");
    assert!(!source.excerpt(complaint.span).contains('\u{1b}'));
}

#[test]
fn links_of_a_context_are_never_followed_outside_or_in_circles() {
    let outside = tempfile::tempdir().expect("a folder");
    fs::write(outside.path().join("secret"), "s").expect("a file");
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    symlink(outside.path(), root.join("out")).expect("a link");
    symlink(outside.path().join("secret"), root.join("file")).expect("a link");
    symlink("../../../../../../etc/passwd", root.join("up")).expect("a link");
    symlink("loop-b", root.join("loop-a")).expect("a link");
    symlink("loop-a", root.join("loop-b")).expect("a link");
    symlink(".", root.join("here")).expect("a link");
    fs::create_dir(root.join("real")).expect("a folder");
    fs::write(root.join("real/x"), "x").expect("a file");
    symlink("real", root.join("alias")).expect("a link");
    symlink("/real/x", root.join("rooted")).expect("a link");
    let context = Context::open(root, Ignore::default(), Limits::default()).expect("a context");
    assert_eq!(context.entries().count(), 10);
    assert!(context.entries().filter(|(_, entry)| matches!(entry.kind, Kind::Link { .. })).count() == 8);
    let selected = |path: &str| {
        context.select(path, &Ignore::default()).map(|selection| {
            selection.paths().map(|path| String::from_utf8_lossy(path).into_owned()).collect::<Vec<_>>()
        })
    };
    assert!(selected("out/secret").is_err() && selected("file").is_err() && selected("up").is_err());
    assert!(selected("loop-a").expect_err("a circle").to_string().contains("circle"));
    assert_eq!(selected("alias").expect("a link inside"), ["real", "real/x"]);
    assert_eq!(selected("rooted").expect("a link from the root"), ["real/x"]);
    assert_eq!(selected("../../real/x").expect("it stays at the root"), ["real/x"]);
    assert_eq!(selected("here/here/real/x").expect("a link to itself"), ["real/x"]);
    assert!(context.digest(b"file").is_err() && context.open_file(b"out/secret").is_err());
}

#[test]
fn a_file_that_changes_is_told_and_a_pipe_does_not_block() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x");
    fs::write(&path, "one").expect("a file");
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let context = Context::open(folder.path(), Ignore::default(), Limits::default()).expect("a context");
    fs::write(&path, "longer than before").expect("a file");
    assert!(context.digest(b"x").expect_err("it changed").to_string().contains("changed"));
    fs::remove_file(&path).expect("it can be removed");
    symlink("/etc/passwd", &path).expect("a link");
    assert!(context.open_file(b"x").is_err());
    assert!(context.open_file(b"pipe").is_err());
    assert!(context.select("pipe", &Ignore::default()).is_err());
    assert!(context.select(".", &Ignore::default()).is_err());
}

#[test]
fn contexts_have_bounds() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut deep = folder.path().to_path_buf();
    for _ in 0..20 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).expect("folders");
    fs::write(deep.join("x"), "12345").expect("a file");
    let open = |limits| Context::open(folder.path(), Ignore::default(), limits).map(drop);
    let all = Limits::default();
    assert!(open(all).is_ok());
    assert!(open(Limits { depth_max: 10, ..all }).is_err());
    assert!(open(Limits { entries_max: 20, ..all }).is_err());
    assert!(open(Limits { seen_max: 20, ..all }).is_err());
    assert!(open(Limits { bytes_max: 4, ..all }).is_err());
}

#[test]
fn a_tar_is_the_same_context_as_the_folder_that_it_was_made_of() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(folder.path().join("a/b")).expect("folders");
    fs::write(folder.path().join("a/b/x"), "x").expect("a file");
    fs::write(folder.path().join("a/y"), "y").expect("a file");
    symlink("y", folder.path().join("a/l")).expect("a link");
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", folder.path()).expect("a tar");
    let bytes = builder.into_inner().expect("a tar");
    for text in ["", "a/y", "a\n!a/b/x"] {
        let ignored = Ignore::parse(text).expect("patterns");
        let of_folder = Context::open(folder.path(), ignored.clone(), Limits::default()).expect("a context");
        let of_tar = Context::read_tar(bytes.as_slice(), ignored, Limits::default()).expect("a context");
        let list = |context: &Context| {
            let told = context.entries().map(|(path, entry)| {
                let digest = (entry.kind == Kind::File).then(|| context.digest(path).expect("a digest"));
                format!("{} {:?} {:o} {} {digest:?}", String::from_utf8_lossy(path), entry.kind, entry.mode, entry.size)
            });
            told.collect::<Vec<_>>()
        };
        assert_eq!(list(&of_folder), list(&of_tar), "{text:?}");
        assert!(!list(&of_tar).is_empty());
    }
}
