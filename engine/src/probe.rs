//! What this machine offers of all that a sandbox needs, found out by trying and not by guessing from versions.
//!
//! Whatever could disturb the process that asks (namespaces, mounts, filters, control groups) is tried in a child:
//! the program starts itself again and calls `attempt`. A check is data: its name, whether jobs can run without it,
//! what is lost, how to mend it, and the function that looks.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

mod cgroups;
mod kernel;
mod mounts;
mod namespaces;
mod privileges;
mod surroundings;

/// Longest time that one attempt may take.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(10);
/// How often a running attempt is looked at.
const ATTEMPT_POLL: Duration = Duration::from_millis(2);
/// Most bytes that an attempt may answer.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;

/// The remedy for attempts that need root.
const MEND_ORDINARY_USER: &str = "ask again as root: sudo ampoule doctor";

/// What is asked about: the places that a service on this machine would use.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The state folder; it need not exist yet.
    pub state: PathBuf,
    /// The unix socket; it need not exist yet.
    pub socket: PathBuf,
    /// The unprivileged user of the service, when one was named.
    pub user: Option<String>,
    /// This program, which attempts in a child start again.
    pub program: PathBuf,
    /// Arguments of `program` before the name of an attempt, which make it call `attempt` with an equal ground.
    pub arguments: Vec<String>,
}

/// Whether something is there, and how much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// It is there and works.
    Present,
    /// It is not there; jobs run, with something less.
    Weaker,
    /// It is not there, and no job can run.
    Missing,
}

/// The answer to one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked for.
    pub name: &'static str,
    /// Whether it is there.
    pub presence: Presence,
    /// What was seen.
    pub found: String,
    /// What is lost without it.
    pub lost: &'static str,
    /// The exact way to mend it; empty when it is present.
    pub mend: String,
}

/// All answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether nothing that every job needs is missing.
    pub jobs_can_run: bool,
    /// One answer a check, in the order in which a launch needs them.
    pub findings: Vec<Finding>,
}

/// What a look at the machine gives: what was seen, or how it is absent.
type Seen = Result<String, Absence>;

/// How something is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Absence {
    /// What was seen instead.
    found: String,
    /// A better remedy than the check's own, when the cause tells one.
    mend: Option<String>,
}

impl Absence {
    fn new(found: impl Into<String>) -> Absence {
        Absence { found: found.into(), mend: None }
    }

    fn mended_by(self, mend: impl Into<String>) -> Absence {
        Absence { mend: Some(mend.into()), ..self }
    }
}

/// Makes the absence out of a failed call: `open(..).map_err(failed("open the folder"))`.
fn failed<E: std::fmt::Display>(action: impl std::fmt::Display) -> impl FnOnce(E) -> Absence {
    move |error| Absence::new(format!("could not {action}: {error}"))
}

/// Whether jobs can run without it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// No job can run.
    Every,
    /// Jobs run, with something less.
    Better,
}

/// Where a check may look.
enum Look {
    /// In this process: it only reads.
    Here(fn(&Ground) -> Seen),
    /// In a child, since it changes the process that looks.
    InChild(fn(&Ground) -> Seen),
}

/// One thing that is looked for.
struct Check {
    name: &'static str,
    need: Need,
    lost: &'static str,
    mend: &'static str,
    look: Look,
}

fn checks() -> impl Iterator<Item = &'static Check> {
    [kernel::CHECKS, privileges::CHECKS, namespaces::CHECKS, mounts::CHECKS, cgroups::CHECKS, surroundings::CHECKS]
        .into_iter()
        .flatten()
}

/// Looks for everything, one after the other; takes well under a second.
pub fn survey(ground: &Ground) -> Report {
    let findings: Vec<Finding> = checks().map(|check| find(check, ground)).collect();
    let jobs_can_run = findings.iter().all(|finding| finding.presence != Presence::Missing);
    Report { jobs_can_run, findings }
}

/// Makes one attempt in this process, which must have one thread and be of no further use, and returns the line
/// that its parent reads from standard output. Unknown names are answered too, as absent.
pub fn attempt(name: &str, ground: &Ground) -> String {
    let seen = match checks().find(|check| check.name == name).map(|check| &check.look) {
        Some(Look::InChild(look)) => look(ground),
        _ => match namespaces::inner(name) {
            Some(seen) => seen,
            None => Err(Absence::new(format!("there is no attempt named `{name}`"))),
        },
    };
    serde_json::to_string(&seen).unwrap_or_else(|error| format!("the answer cannot be written: {error}"))
}

fn find(check: &'static Check, ground: &Ground) -> Finding {
    let (seen, is_tried) = match check.look {
        Look::Here(look) => (look(ground), false),
        Look::InChild(_) => (attempt_in_child(check.name, ground), true),
    };
    let Absence { found, mend } = match seen {
        Ok(found) => {
            let mend = String::new();
            return Finding { name: check.name, presence: Presence::Present, found, lost: check.lost, mend };
        }
        Err(absence) => absence,
    };
    let presence = if check.need == Need::Every { Presence::Missing } else { Presence::Weaker };
    // What an ordinary user fails at is no fault of the machine's, so far as is known.
    let mend = match mend {
        _ if is_tried && !rustix::process::geteuid().is_root() => MEND_ORDINARY_USER.to_owned(),
        Some(mend) => mend,
        None => check.mend.to_owned(),
    };
    Finding { name: check.name, presence, found, lost: check.lost, mend }
}

fn attempt_in_child(name: &str, ground: &Ground) -> Seen {
    let mut child = start_attempt(name, ground)?;
    wait_bounded(&mut child)?;
    let mut answer = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).map_err(failed("read the answer of the attempt"))?;
    }
    serde_json::from_str(&answer).unwrap_or_else(|_| Err(Absence::new("the attempt died without an answer")))
}

/// Starts this program again for one attempt, with pipes for standard input and output.
fn start_attempt(name: &str, ground: &Ground) -> Result<Child, Absence> {
    Command::new(&ground.program)
        .args(&ground.arguments)
        .arg(name)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed(format_args!("start {} again", ground.program.display())))
}

fn wait_bounded(child: &mut Child) -> Result<(), Absence> {
    let deadline = Instant::now() + ATTEMPT_TIME_MAX;
    while child.try_wait().map_err(failed("wait for the attempt"))?.is_none() {
        if Instant::now() > deadline {
            end(child);
            return Err(Absence::new(format!("the attempt did not end within {} s", ATTEMPT_TIME_MAX.as_secs())));
        }
        std::thread::sleep(ATTEMPT_POLL);
    }
    Ok(())
}

/// Kills and reaps; a child that is gone already is no error.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_check_says_what_is_lost_and_how_to_mend_it() {
        let mut names = HashSet::new();
        for check in checks() {
            assert!(names.insert(check.name), "two checks are named {}", check.name);
            assert!(!check.lost.is_empty(), "{} does not say what is lost", check.name);
            assert!(!check.mend.is_empty(), "{} does not say how to mend it", check.name);
        }
    }

    #[test]
    fn an_unknown_attempt_is_answered_as_absent() {
        let answer = attempt("no such check", &ground());
        let seen: Seen = serde_json::from_str(&answer).expect("an answer");
        assert!(seen.unwrap_err().found.contains("no such check"));
    }

    #[test]
    fn an_attempt_that_answers_nothing_is_absent_and_not_present() {
        let seen = attempt_in_child("ignored", &Ground { program: "/bin/true".into(), ..ground() });
        assert_eq!(seen.unwrap_err().found, "the attempt died without an answer");
    }

    fn ground() -> Ground {
        Ground {
            state: "/var/lib/ampoule".into(),
            socket: "/run/ampoule.sock".into(),
            user: None,
            program: "/bin/false".into(),
            arguments: Vec::new(),
        }
    }
}
