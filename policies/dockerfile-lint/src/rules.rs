//! The rules, as rows of a table.

use ampoule_policy::build::{Action, CopySource, Request, Run, Step};

use crate::shell::{pipelines, program};

/// Something that was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) rule: &'static str,
    pub(crate) line: u32,
    pub(crate) message: String,
}

/// One rule about a step: what is wrong with it, if anything is.
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    mend: &'static str,
    look: fn(&Step) -> Option<String>,
}

/// All rules.
pub(crate) const RULES: &[Rule] = &[
    Rule {
        name: "latest-tag",
        mend: "name a version or, better, a digest",
        // Of images, not of steps: see `findings`.
        look: |_| None,
    },
    Rule {
        name: "pipe-to-shell",
        mend: "download to a file, compare its digest, and run it then; or ADD it with --checksum",
        look: |step| commands(step)?.iter().find_map(|line| pipe_to_shell(line)),
    },
    Rule {
        name: "add-without-checksum",
        mend: "add --checksum=sha256:…, so that the build fails when the download is another one",
        look: add_without_checksum,
    },
    Rule {
        name: "secret-in-variable",
        mend: "use RUN --mount=type=secret: arguments and variables stay in the image's history",
        look: secret_in_variable,
    },
    Rule {
        name: "sudo",
        mend: "use USER; a build runs as root unless told otherwise",
        look: |step| {
            let has_sudo = commands(step)?.iter().flatten().any(|command| is_sudo(command));
            has_sudo.then(|| "sudo is used in a build".to_owned())
        },
    },
    Rule {
        name: "apt-without-yes",
        mend: "write `apt-get install -y`: nobody answers in a build",
        look: |step| commands(step)?.iter().flatten().find_map(|command| apt_without_yes(command)),
    },
    Rule {
        name: "apt-instead-of-apt-get",
        mend: "write `apt-get`: the options of `apt` are for people and change",
        look: |step| {
            let is_apt = |command: &Vec<String>| program(command).is_some_and(|(name, _)| name == "apt");
            let has_apt = commands(step)?.iter().flatten().any(is_apt);
            has_apt.then(|| "`apt` is made for people and not for scripts".to_owned())
        },
    },
    Rule {
        name: "world-writable",
        mend: "give the one user that needs it the file, with --chown",
        look: |step| commands(step)?.iter().flatten().find_map(|command| world_writable(command)),
    },
];

/// What to do about a rule.
pub(crate) fn mend(name: &str) -> &'static str {
    RULES.iter().find(|rule| rule.name == name).map_or("", |rule| rule.mend)
}

/// All that is found in a build, in the order of lines; what stages share is told once.
pub(crate) fn findings(build: &Request) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, image) in build.images().into_iter().filter(|(_, image)| !image.is_pinned) {
        let path = image.reference.rsplit('/').next().unwrap_or_default();
        if path.split_once(':').is_none_or(|(_, tag)| tag == "latest") {
            let message = format!("`{}` has the tag `latest`, which names another image every week", image.reference);
            findings.push(Finding { rule: "latest-tag", line, message });
        }
    }
    for step in build.stages.iter().flat_map(|stage| &stage.steps) {
        for rule in RULES {
            if let Some(message) = (rule.look)(step) {
                findings.push(Finding { rule: rule.name, line: step.line, message });
            }
        }
    }
    findings.sort_by_key(|finding| finding.line);
    findings.dedup();
    findings
}

/// The pipelines of a RUN, those in the words of `sh -c` and of its script.
fn commands(step: &Step) -> Option<Vec<Vec<Vec<String>>>> {
    let Action::Run(run) = &step.action else { return None };
    Some(match script(run) {
        Some(script) => pipelines(script),
        None => vec![vec![run.argv.clone()]],
    })
}

fn script(run: &Run) -> Option<&str> {
    if let Some(script) = &run.script {
        return Some(script);
    }
    let [shell, flags @ .., script] = &run.argv[..] else { return None };
    let has_script = is_shell(shell) && flags.iter().any(|flag| flag.starts_with('-') && flag.ends_with('c'));
    has_script.then_some(script)
}

fn is_shell(program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or_default();
    ["sh", "bash", "dash", "ash", "zsh", "ksh"].contains(&name)
}

fn pipe_to_shell(pipeline: &[Vec<String>]) -> Option<String> {
    let names: Vec<&str> = pipeline.iter().filter_map(|command| program(command)).map(|(name, _)| name).collect();
    let from = names.iter().position(|name| ["curl", "wget", "fetch"].contains(name))?;
    let runs = |name: &&&str| is_shell(name) || ["python", "python3", "perl", "ruby", "node"].contains(*name);
    let to = names[from + 1..].iter().find(runs)?;
    Some(format!("what `{}` downloads is run by `{to}` unseen", names[from]))
}

fn add_without_checksum(step: &Step) -> Option<String> {
    let Action::Copy(copy) = &step.action else { return None };
    let url = copy.sources.iter().find_map(|source| match source {
        CopySource::Url(url) => Some(url),
        _ => None,
    })?;
    copy.checksum.is_none().then(|| format!("`{url}` is added without a checksum"))
}

fn secret_in_variable(step: &Step) -> Option<String> {
    let (what, name) = match &step.action {
        Action::Arguments(names) => ("argument", names.iter().find(|name| is_secret(name))?),
        Action::Environment(pairs) => {
            let is_set = |(name, value): &&(String, String)| is_secret(name) && !value.is_empty();
            ("variable", &pairs.iter().find(is_set)?.0)
        }
        _ => return None,
    };
    Some(format!("the {what} `{name}` looks like a secret"))
}

/// Whether a whole part of the name says so, as in `NPM_TOKEN`; not `TOKENIZER`, and not a file's name.
fn is_secret(name: &str) -> bool {
    const WORDS: [&str; 8] =
        ["PASSWORD", "PASSWD", "SECRET", "TOKEN", "APIKEY", "CREDENTIAL", "CREDENTIALS", "PRIVATEKEY"];
    let upper = name.to_ascii_uppercase();
    let parts: Vec<&str> = upper.split('_').collect();
    let is_place = parts.last().is_some_and(|last| ["FILE", "PATH", "DIR", "URL"].contains(last));
    let is_pair = parts.windows(2).any(|pair| matches!(pair, ["API" | "PRIVATE" | "ACCESS" | "SECRET", "KEY"]));
    !is_place && (is_pair || parts.iter().any(|part| WORDS.contains(part)))
}

fn is_sudo(command: &[String]) -> bool {
    let is_assignment = |word: &&String| word.contains('=') && !word.starts_with('-');
    command.iter().find(|word| !is_assignment(word)).is_some_and(|word| word == "sudo" || word.ends_with("/sudo"))
}

fn apt_without_yes(command: &[String]) -> Option<String> {
    let (name, rest) = program(command).filter(|(name, _)| ["apt-get", "apt"].contains(name))?;
    let asks = ["install", "upgrade", "dist-upgrade", "full-upgrade", "remove", "purge", "autoremove", "build-dep"];
    let verb = rest.iter().find(|word| asks.contains(&word.as_str()))?;
    let is_yes = |word: &String| {
        let is_short = word.starts_with('-') && !word.starts_with("--") && word.contains(['y', 'q']);
        // One q only means quiet; two of them mean yes.
        let says_yes = word.contains('y') || word.matches('q').count() >= 2;
        (is_short && says_yes) || ["--yes", "--assume-yes", "--force-yes"].contains(&word.as_str())
    };
    (!rest.iter().any(is_yes)).then(|| format!("`{name} {verb}` asks, and nobody answers"))
}

fn world_writable(command: &[String]) -> Option<String> {
    let (_, rest) = program(command).filter(|(name, _)| *name == "chmod")?;
    let mode = rest.iter().find(|word| !word.starts_with('-'))?;
    let others = mode.chars().last().and_then(|digit| digit.to_digit(8));
    let is_octal = mode.len() >= 3 && mode.chars().all(|digit| digit.is_digit(8));
    let is_open = is_octal && others.is_some_and(|bits| bits & 2 != 0);
    let is_said = ["a+w", "o+w", "a+rw", "a+rwx", "o+rw", "o+rwx", "ugo+rwx", "+rwx"].contains(&mode.as_str());
    (is_open || is_said).then(|| format!("`chmod {mode}` lets everybody write"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str) -> Step {
        let run = Run {
            argv: ["/bin/sh", "-c", script].map(String::from).into(),
            script: None,
            mounts: Vec::new(),
            network: "default".into(),
            working_dir: "/".into(),
            user: String::new(),
        };
        step(Action::Run(run))
    }

    fn step(action: Action) -> Step {
        Step { line: 1, column: 1, text: String::new(), is_trigger: false, action }
    }

    #[track_caller]
    fn check(step: &Step, expected: &[&str]) {
        let found: Vec<&str> = RULES.iter().filter(|rule| (rule.look)(step).is_some()).map(|rule| rule.name).collect();
        assert_eq!(found, expected, "{:?}", step.action);
    }

    #[test]
    fn a_download_that_a_shell_runs_is_found_however_it_is_written() {
        check(&run("curl -fsSL https://example.com/x | sh"), &["pipe-to-shell"]);
        check(&run("set -e; wget -qO- https://example.com/x | tee /tmp/x | bash -s -- -y"), &["pipe-to-shell"]);
        check(&run("curl https://example.com/x | sudo -E bash"), &["pipe-to-shell", "sudo"]);
        check(&run("curl https://example.com/x | tar xz"), &[]);
        check(&run("echo 'curl x | sh'"), &[]);
        check(&run("curl -o x https://example.com/x || sh fallback.sh"), &[]);
    }

    #[test]
    fn apt_is_found_when_it_would_ask() {
        check(&run("apt-get update && apt-get install curl"), &["apt-without-yes"]);
        check(&run("apt-get update && apt-get install -y --no-install-recommends curl"), &[]);
        check(&run("apt-get -qq install curl"), &[]);
        check(&run("apt-get -q install curl"), &["apt-without-yes"]);
        check(&run("DEBIAN_FRONTEND=noninteractive apt-get --yes install curl"), &[]);
        check(&run("apt install -y curl"), &["apt-instead-of-apt-get"]);
        check(&run("apt-get install python3-yaml"), &["apt-without-yes"]);
    }

    #[test]
    fn sudo_and_open_modes_are_found() {
        check(&run("A=1 sudo make install"), &["sudo"]);
        check(&run("echo sudo"), &[]);
        check(&run("chmod -R 777 /srv"), &["world-writable"]);
        check(&run("chmod o+w /srv"), &["world-writable"]);
        check(&run("chmod 0755 /srv && chmod +x /a"), &[]);
    }

    #[test]
    fn secrets_are_known_by_whole_parts_of_names() {
        let environment = |name: &str, value: &str| step(Action::Environment(vec![(name.into(), value.into())]));
        check(&step(Action::Arguments(vec!["VERSION".into(), "NPM_TOKEN".into()])), &["secret-in-variable"]);
        check(&environment("DB_PASSWORD", "x"), &["secret-in-variable"]);
        check(&environment("AWS_SECRET_ACCESS_KEY", "x"), &["secret-in-variable"]);
        check(&environment("DB_PASSWORD", ""), &[]);
        check(&environment("TOKENIZERS", "x"), &[]);
        check(&environment("DB_PASSWORD_FILE", "/run/secrets/db"), &[]);
    }
}
