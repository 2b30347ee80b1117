//! Checks what a policy answers and applies its changes to a job. Pure: nothing here knows WebAssembly.
//! A change that no client could have asked for is an error of the policy, never silently dropped.

use crate::admission::{Admission, AdmissionLimits, AdmissionWritable};
use crate::verdict::{Answer, Change, LimitName, Refusal, Verdict, Warning};

/// Most changes in one verdict.
pub(crate) const CHANGES_MAX: usize = 256;
/// Most warnings in one verdict.
const WARNINGS_MAX: usize = 32;
/// Longest code of a refusal or warning, in bytes.
const CODE_BYTES_MAX: usize = 64;
/// Longest sentence in an answer, in bytes.
const SENTENCE_BYTES_MAX: usize = 4096;
/// Longest name of a variable, label or user, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Longest value of a variable or label, in bytes; also of all arguments together.
const VALUE_BYTES_MAX: usize = 128 * 1024;
/// Longest path, in bytes.
const PATH_BYTES_MAX: usize = 1024;

/// Checks the parts of an answer that do not depend on the job.
///
/// # Errors
/// The first part that breaks the contract.
pub(crate) fn check(answer: &Answer) -> Result<(), String> {
    check_warnings(answer.warnings.iter().map(|Warning { code, message }| (code.as_str(), message.as_str())))?;
    match &answer.verdict {
        Verdict::Allow => Ok(()),
        Verdict::Deny(Refusal { code, reason, hint }) => check_refusal(code, reason, hint),
        Verdict::Change(changes) => check_count("changes", changes.len(), CHANGES_MAX),
    }
}

/// Checks the warnings of an answer, each a code and a message.
pub(crate) fn check_warnings<'a>(warnings: impl ExactSizeIterator<Item = (&'a str, &'a str)>) -> Result<(), String> {
    check_count("warnings", warnings.len(), WARNINGS_MAX)?;
    for (code, message) in warnings {
        check_code("the code of a warning", code)?;
        check_sentence("the message of a warning", message)?;
    }
    Ok(())
}

/// Checks how many there are of something.
pub(crate) fn check_count(what: &str, count: usize, most: usize) -> Result<(), String> {
    if count > most { Err(format!("{count} {what}, at most {most}")) } else { Ok(()) }
}

/// Checks a refusal.
pub(crate) fn check_refusal(code: &str, reason: &str, hint: &str) -> Result<(), String> {
    check_code("the code of the refusal", code)?;
    check_sentence("the reason of the refusal", reason)?;
    if hint.is_empty() { Ok(()) } else { check_sentence("the hint of the refusal", hint) }
}

fn check_code(what: &str, code: &str) -> Result<(), String> {
    let is_plain = code.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if code.is_empty() || code.len() > CODE_BYTES_MAX || !is_plain {
        return Err(format!("{what} is `{code:.80}`, not 1 to {CODE_BYTES_MAX} of a-z, 0-9 and `-`"));
    }
    Ok(())
}

fn check_sentence(what: &str, text: &str) -> Result<(), String> {
    if text.trim().is_empty() || text.len() > SENTENCE_BYTES_MAX {
        return Err(format!("{what} has {} bytes, not 1 to {SENTENCE_BYTES_MAX}", text.len()));
    }
    Ok(())
}

/// Makes the changes, in order, and names the fields that are different afterwards.
///
/// # Errors
/// The first change that would make a job which cannot be executed.
pub(crate) fn apply(job: &mut Admission, changes: Vec<Change>) -> Result<Vec<String>, String> {
    let mut changed = Vec::new();
    for change in changes {
        if let Some(field) = apply_one(job, change)?
            && !changed.contains(&field)
        {
            changed.push(field);
        }
    }
    Ok(changed)
}

fn apply_one(job: &mut Admission, change: Change) -> Result<Option<String>, String> {
    match change {
        Change::SetLimit { name, value } => set_limit(&mut job.limits, name, value),
        Change::SetArgv(argv) => {
            check_argv(&argv)?;
            Ok(replace("argv", &mut job.argv, argv))
        }
        Change::SetUser(user) => {
            check_name("user", &user)?;
            Ok(replace("user", &mut job.user, user))
        }
        Change::SetCwd(cwd) => {
            check_path("cwd", &cwd)?;
            Ok(replace("cwd", &mut job.cwd, cwd))
        }
        Change::SetEnv { name, value } => {
            check_variable(&name, &value)?;
            Ok(set_pair("env", &mut job.env, name, value))
        }
        Change::RemoveEnv(name) => Ok(remove_pair("env", &mut job.env, &name)),
        Change::SetLabel { name, value } => {
            check_name("labels", &name)?;
            check_text("labels", &value)?;
            Ok(set_pair("labels", &mut job.labels, name, value))
        }
        Change::RemoveLabel(name) => Ok(remove_pair("labels", &mut job.labels, &name)),
        Change::SetPriority(priority) => Ok(replace("priority", &mut job.priority, priority)),
        Change::SetNetwork(network) if network == "none" => Ok(replace("network", &mut job.network, network)),
        Change::SetNetwork(network) => Err(format!("network: `{network:.80}` cannot be set, only `none`")),
        Change::SetWritable(writable) => set_writable(&mut job.writable, writable),
        Change::RemoveWritable(path) => {
            let before = job.writable.len();
            job.writable.retain(|writable| writable.path != path);
            Ok((job.writable.len() != before).then(|| format!("writable.{path}")))
        }
    }
}

fn set_limit(limits: &mut AdmissionLimits, name: LimitName, value: u64) -> Result<Option<String>, String> {
    let field = name.field();
    if value == 0 {
        return Err(format!("{field}: a limit must be above 0"));
    }
    let narrow = || u32::try_from(value).map_err(|_| format!("{field}: {value} is above {}", u32::MAX));
    let is_changed = match name {
        LimitName::MemoryBytes => put(&mut limits.memory_bytes, value),
        LimitName::CpuMilli => put(&mut limits.cpu_milli, narrow()?),
        LimitName::Pids => put(&mut limits.pids, narrow()?),
        LimitName::CpuTimeMs => put(&mut limits.cpu_time_ms, value),
        LimitName::WallTimeMs => put(&mut limits.wall_time_ms, value),
        LimitName::OpenFiles => put(&mut limits.open_files, value),
        LimitName::FileBytes => put(&mut limits.file_bytes, value),
        LimitName::OutputBytes => put(&mut limits.output_bytes, value),
        LimitName::OutputTotalBytes => put(&mut limits.output_total_bytes, value),
    };
    Ok(is_changed.then(|| field.to_owned()))
}

impl LimitName {
    /// The field of a job that the limit is.
    fn field(self) -> &'static str {
        match self {
            LimitName::MemoryBytes => "limits.memory_bytes",
            LimitName::CpuMilli => "limits.cpu_milli",
            LimitName::Pids => "limits.pids",
            LimitName::CpuTimeMs => "limits.cpu_time_ms",
            LimitName::WallTimeMs => "limits.wall_time_ms",
            LimitName::OpenFiles => "limits.open_files",
            LimitName::FileBytes => "limits.file_bytes",
            LimitName::OutputBytes => "limits.output_bytes",
            LimitName::OutputTotalBytes => "limits.output_total_bytes",
        }
    }
}

fn set_writable(all: &mut Vec<AdmissionWritable>, new: AdmissionWritable) -> Result<Option<String>, String> {
    check_path("writable.path", &new.path)?;
    if new.size_bytes == 0 || new.inodes == 0 {
        return Err(format!("writable: `{}` has no room: size and inodes must be above 0", new.path));
    }
    let field = format!("writable.{}", new.path);
    match all.iter_mut().find(|writable| writable.path == new.path) {
        Some(old) => Ok(put(old, new).then_some(field)),
        None => {
            all.push(new);
            Ok(Some(field))
        }
    }
}

/// Sets a pair, and names the field when that changed it.
pub(crate) fn set_pair(field: &str, pairs: &mut Vec<(String, String)>, name: String, value: String) -> Option<String> {
    let field = format!("{field}.{name}");
    match pairs.iter_mut().find(|(other, _)| *other == name) {
        Some((_, old)) => put(old, value).then_some(field),
        None => {
            pairs.push((name, value));
            Some(field)
        }
    }
}

fn remove_pair(field: &str, pairs: &mut Vec<(String, String)>, name: &str) -> Option<String> {
    let before = pairs.len();
    pairs.retain(|(other, _)| other != name);
    (pairs.len() != before).then(|| format!("{field}.{name}"))
}

fn replace<T: PartialEq>(field: &str, old: &mut T, new: T) -> Option<String> {
    put(old, new).then(|| field.to_owned())
}

fn put<T: PartialEq>(old: &mut T, new: T) -> bool {
    let is_changed = *old != new;
    *old = new;
    is_changed
}

fn check_argv(argv: &[String]) -> Result<(), String> {
    if argv.first().is_none_or(String::is_empty) {
        return Err("argv: there is no program to run".to_owned());
    }
    if argv.iter().any(|argument| argument.contains('\0')) {
        return Err("argv: an argument contains a NUL byte".to_owned());
    }
    let bytes = argv.iter().map(|argument| argument.len() + 1).sum::<usize>();
    if bytes > VALUE_BYTES_MAX {
        return Err(format!("argv: {bytes} bytes, at most {VALUE_BYTES_MAX}"));
    }
    Ok(())
}

fn check_variable(name: &str, value: &str) -> Result<(), String> {
    check_name("env", name)?;
    if name.contains('=') {
        return Err(format!("env: `{name:.80}` is not a name of a variable"));
    }
    check_text("env", value)
}

/// Checks a name of a user or label.
pub(crate) fn check_name(field: &str, name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
        return Err(format!("{field}: `{name:.80}` is not 1 to {NAME_BYTES_MAX} bytes without NUL"));
    }
    Ok(())
}

/// Checks a value.
pub(crate) fn check_text(field: &str, value: &str) -> Result<(), String> {
    if value.len() > VALUE_BYTES_MAX || value.contains('\0') {
        return Err(format!("{field}: a value has {VALUE_BYTES_MAX} bytes at most and no NUL"));
    }
    Ok(())
}

fn check_path(field: &str, path: &str) -> Result<(), String> {
    let is_plain = path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|part| part != "." && part != ".."));
    if !is_plain || path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return Err(format!("{field}: `{path:.80}` is not an absolute path without `.` and `..`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::job;

    fn refused(change: Change) -> String {
        apply(&mut job(), vec![change]).expect_err("the change should have been refused")
    }

    #[test]
    fn a_change_names_the_fields_that_are_different_afterwards() {
        let mut changed_job = job();
        let changes = vec![
            Change::SetLimit { name: LimitName::MemoryBytes, value: 1 << 20 },
            Change::SetLimit { name: LimitName::Pids, value: u64::from(job().limits.pids) },
            Change::SetEnv { name: "A".into(), value: "1".into() },
            Change::SetEnv { name: "A".into(), value: "2".into() },
            Change::RemoveEnv("NOT_THERE".into()),
            Change::SetUser("1000:1000".into()),
        ];
        let changed = apply(&mut changed_job, changes).expect("all changes are possible");
        assert_eq!(changed, ["limits.memory_bytes", "env.A", "user"]);
        assert_eq!(changed_job.limits.memory_bytes, 1 << 20);
        assert_eq!(changed_job.env.iter().filter(|(name, _)| name == "A").count(), 1);
    }

    #[test]
    fn a_change_that_no_client_could_ask_for_is_refused() {
        assert!(refused(Change::SetLimit { name: LimitName::WallTimeMs, value: 0 }).contains("above 0"));
        assert!(refused(Change::SetLimit { name: LimitName::Pids, value: 1 << 40 }).contains("above"));
        assert!(refused(Change::SetEnv { name: "A=B".into(), value: String::new() }).contains("not a name"));
        assert!(refused(Change::SetCwd("../etc".into())).contains("absolute"));
        assert!(refused(Change::SetCwd("/a/../etc".into())).contains("absolute"));
        assert!(refused(Change::SetArgv(vec![])).contains("no program"));
        assert!(refused(Change::SetUser(String::new())).contains("user"));
        assert!(refused(Change::SetNetwork("host".into())).contains("only `none`"));
    }

    #[test]
    fn a_refusal_needs_a_plain_code_and_a_reason() {
        let refusal = |code: &str, reason: &str| Answer {
            verdict: Verdict::Deny(Refusal { code: code.into(), reason: reason.into(), hint: String::new() }),
            warnings: Vec::new(),
        };
        assert_eq!(check(&refusal("too-big", "it is too big")), Ok(()));
        assert!(check(&refusal("Too Big", "it is too big")).is_err());
        assert!(check(&refusal("", "it is too big")).is_err());
        assert!(check(&refusal("too-big", " ")).is_err());
    }
}
