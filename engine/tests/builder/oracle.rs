//! A second opinion: the crate parse-dockerfile reads what we read. Left out are the forms in which it is known to
//! differ: heredocs behind other words, byte order marks, comments inside of commands; and first words that are flags,
//! which have a test of their own.

use ampoule_engine::builder::dockerfile::{self, Command, CommandLine, CopySource};
use ampoule_engine::builder::source::Source;
use proptest::prelude::*;

/// What both can be asked: where each instruction starts, its keyword, and its words where it has some.
type Opinion = Vec<(usize, &'static str, Vec<String>)>;

fn ours(text: &str) -> Option<Opinion> {
    let file = dockerfile::parse(&Source::new("Dockerfile", text)).ok()?;
    let opinion = file.instructions.iter().map(|instruction| {
        let words = match &instruction.command {
            Command::From(from) => {
                let name = from.name.iter().map(|name| name.value.clone());
                std::iter::once(from.base.value.clone()).chain(name).collect()
            }
            Command::Copy(copy) | Command::Add(copy) => {
                let source = |source: &CopySource| match source {
                    CopySource::Path(word) | CopySource::Heredoc(word) => word.value.clone(),
                };
                copy.sources.iter().map(source).chain([copy.destination.value.clone()]).collect()
            }
            Command::Expose(words) | Command::Shell(words) => words.iter().map(|word| word.value.clone()).collect(),
            Command::Cmd(CommandLine::Exec(words)) => words.iter().map(|word| word.value.clone()).collect(),
            Command::Workdir(word) | Command::User(word) => vec![word.value.clone()],
            _ => Vec::new(),
        };
        (instruction.span.start, instruction.command.name(), words)
    });
    Some(opinion.collect())
}

fn theirs(text: &str) -> Option<Opinion> {
    use parse_dockerfile::{Command, Instruction, Source};
    let file = parse_dockerfile::parse(text).ok()?;
    let copied = |sources: &[Source], destination: &str| {
        let source = |source: &Source| match source {
            Source::Path(path) => path.value.to_string(),
            _ => String::new(),
        };
        sources.iter().map(source).chain([destination.to_owned()]).collect::<Vec<String>>()
    };
    let opinion = file.instructions.iter().map(|instruction| match instruction {
        Instruction::From(from) => {
            let name = from.as_.iter().map(|(_, name)| name.value.to_string());
            let words = std::iter::once(from.image.value.to_string()).chain(name).collect();
            (from.from.span.start, "FROM", words)
        }
        Instruction::Copy(copy) => (copy.copy.span.start, "COPY", copied(&copy.src, &copy.dest.value)),
        Instruction::Add(add) => (add.add.span.start, "ADD", copied(&add.src, &add.dest.value)),
        Instruction::Expose(expose) => {
            (expose.expose.span.start, "EXPOSE", expose.arguments.iter().map(|word| word.value.to_string()).collect())
        }
        Instruction::Shell(shell) => {
            (shell.shell.span.start, "SHELL", shell.arguments.iter().map(|word| word.value.to_string()).collect())
        }
        Instruction::Cmd(cmd) => {
            let words = match &cmd.arguments {
                Command::Exec(words) => words.value.iter().map(|word| word.value.to_string()).collect(),
                _ => Vec::new(),
            };
            (cmd.cmd.span.start, "CMD", words)
        }
        Instruction::Workdir(workdir) => {
            (workdir.workdir.span.start, "WORKDIR", vec![workdir.arguments.value.to_string()])
        }
        Instruction::User(user) => (user.user.span.start, "USER", vec![user.arguments.value.to_string()]),
        Instruction::Arg(arg) => (arg.arg.span.start, "ARG", Vec::new()),
        Instruction::Env(env) => (env.env.span.start, "ENV", Vec::new()),
        Instruction::Run(run) => (run.run.span.start, "RUN", Vec::new()),
        Instruction::Label(label) => (label.label.span.start, "LABEL", Vec::new()),
        Instruction::Volume(volume) => (volume.volume.span.start, "VOLUME", Vec::new()),
        Instruction::Entrypoint(line) => (line.entrypoint.span.start, "ENTRYPOINT", Vec::new()),
        Instruction::Stopsignal(signal) => (signal.stopsignal.span.start, "STOPSIGNAL", Vec::new()),
        Instruction::Healthcheck(probe) => (probe.healthcheck.span.start, "HEALTHCHECK", Vec::new()),
        Instruction::Onbuild(trigger) => (trigger.onbuild.span.start, "ONBUILD", Vec::new()),
        Instruction::Maintainer(name) => (name.maintainer.span.start, "MAINTAINER", Vec::new()),
        other => panic!("an instruction that nobody knows: {other:?}"),
    });
    Some(opinion.collect())
}

/// One instruction, or something between two.
fn line() -> impl Strategy<Value = String> {
    let words = |count: std::ops::Range<usize>| {
        proptest::collection::vec("[a-z0-9/._-]{1,8}", count)
            .prop_filter("the first word is no flag", |words: &Vec<String>| !words[0].starts_with("--"))
    };
    let blank = prop::sample::select(vec![" ", "\t", "  ", " \\\n  ", " \\\n# a remark\n ", " \\\r\n"]);
    let joined = |words: Vec<String>, blank: &str| words.join(blank);
    prop_oneof![
        ("[a-z]{2,6}", proptest::option::of("[a-z]{1,6}")).prop_map(|(base, name)| format!(
            "FROM {base}{}",
            name.map(|name| format!(" AS {name}")).unwrap_or_default()
        )),
        (words(2..5), blank.clone()).prop_map(move |(words, blank)| format!("COPY {}", joined(words, blank))),
        (words(2..4), blank.clone())
            .prop_map(move |(words, blank)| format!("ADD --chown=a:b {}", joined(words, blank))),
        words(2..4).prop_map(|words| format!("COPY {}", serde_json::json!(words))),
        words(1..4).prop_map(|words| format!("CMD {}", serde_json::json!(words))),
        words(1..4).prop_map(|words| format!("shell {}", serde_json::json!(words))),
        (words(1..6), blank.clone()).prop_map(move |(words, blank)| format!("RUN {}", joined(words, blank))),
        words(1..4).prop_map(|words| format!("RUN --network=none --mount=type=cache,target=/x {}", words.join(" && "))),
        (proptest::collection::vec("[0-9]{1,4}", 1..4), blank)
            .prop_map(move |(ports, blank)| format!("EXPOSE {}", joined(ports, blank))),
        "[a-z]{1,4}".prop_map(|name| format!("ENV {name}=1 B=\"two words\"")),
        "[a-z]{1,4}".prop_map(|name| format!("ARG {name}")),
        "[a-z/]{1,8}".prop_map(|path| format!("WORKDIR {path}")),
        "[a-z]{1,8}".prop_map(|user| format!("User {user}")),
        Just("HEALTHCHECK --interval=1s CMD true".to_owned()),
        Just("ONBUILD RUN x".to_owned()),
        Just("# a remark".to_owned()),
        Just(String::new()),
    ]
}

/// Docker refuses a flag that it does not know, too. Of `--` with nothing behind it its classic builder makes an empty
/// command, which we take for a mistake.
#[test]
fn first_words_that_are_flags_are_known_or_refused() {
    let check = |line: &str, expected: Result<(), &str>| {
        let parsed = dockerfile::parse(&Source::new("Dockerfile", format!("FROM scratch\n{line}\n")));
        let said = parsed.map(drop).map_err(|complaint| complaint.message);
        assert_eq!(said, expected.map_err(str::to_owned), "{line}");
    };
    check("RUN --abc x", Err("unknown flag --abc"));
    check("COPY --ab a b", Err("unknown flag --ab"));
    check("ADD --chown=a:b --ab a b", Err("unknown flag --ab"));
    check("RUN --", Err("RUN needs at least one argument"));
    check("RUN --network=none --mount=type=cache,target=/x --", Err("RUN needs at least one argument"));
    check("RUN -- x", Ok(()));
    check("COPY -- a b", Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn another_reader_reads_the_same(lines in proptest::collection::vec(line(), 0..12)) {
        // Of two stages of one name, for which we and Docker have a warning, the other reader makes an error.
        let number = |(at, line): (usize, &String)| if line.contains(" AS ") { format!("{line}{at}") } else { line.clone() };
        let lines: Vec<String> = lines.iter().enumerate().map(number).collect();
        let text = format!("FROM scratch\n{}\n", lines.join("\n"));
        let (ours, theirs) = (ours(&text), theirs(&text));
        prop_assert!(ours.is_some(), "we do not read {text}");
        prop_assert_eq!(ours, theirs, "{}", text);
    }

    #[test]
    fn printing_and_reading_again_gives_the_same_tree(
        lines in proptest::collection::vec(
            prop_oneof![
                line(),
                "(RUN|COPY|ENV|ARG|LABEL|CMD|ENTRYPOINT|EXPOSE|VOLUME|USER|ONBUILD RUN|ADD|HEALTHCHECK CMD) [ -~\\t\\x0b\u{a0}]{0,40}",
                "(RUN|COPY) <<-?[\"']?E[\"']? /x\n[ -~\\n\\t]{0,30}\n\t?E",
            ],
            0..6,
        ),
        escape in prop_oneof![Just(""), Just("# escape=`\n")],
    ) {
        let text = format!("{escape}FROM scratch\n{}\n", lines.join("\n"));
        let source = Source::new("Dockerfile", text);
        if let Ok(file) = dockerfile::parse(&source) {
            super::assert_printing_and_reading_agree(&source, &file);
        }
    }

    #[test]
    fn any_text_is_planned_or_refused_at_a_place_in_it(
        text in "(FROM [a-z$:/{}-]{1,9}( AS [a-z]{1,3})?\n)?((RUN|COPY|ENV|ARG|ADD|FROM|EXPOSE|ONBUILD|#|SHELL|STOPSIGNAL|RUN --mount=|COPY --from=) ?[ -~\\\\\n]{0,24}\n?){0,6}|\\PC{0,60}",
    ) {
        let source = Source::new("Dockerfile", text);
        let made = dockerfile::parse(&source).and_then(|file| {
            super::assert_printing_and_reading_agree(&source, &file);
            ampoule_engine::builder::plan::plan(&source, &file, &super::options(super::Wishes::default()))
        });
        if let Err(complaint) = made {
            prop_assert!(complaint.span.start <= complaint.span.end && complaint.span.end <= source.text().len());
            prop_assert!(!complaint.message.is_empty());
            source.excerpt(complaint.span);
        }
    }
}
