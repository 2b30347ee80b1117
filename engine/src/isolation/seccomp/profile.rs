//! A profile as it is written (JSON, names) and as it is meant (numbers, rules), and the step from one to the other.
//! Says nothing of how rules become a program: that is `tree`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{constants, numbers};

/// What the kernel does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Does it.
    Allow,
    /// Does nothing and answers with this errno; 0 is success.
    Errno(u16),
    /// Ends the process with SIGSYS.
    Kill,
}

/// One comparison: the low 32 bits of an argument, through a mask, with any of these values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Test {
    /// 0 to 5.
    pub(super) arg: u8,
    /// The bits that count.
    pub(super) mask: u32,
    /// The values that hold; never empty.
    pub(super) is: Vec<u32>,
}

/// A verdict for calls for which all tests hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Case {
    /// The tests; never empty.
    pub(super) when: Vec<Test>,
    /// What happens then.
    pub(super) verdict: Verdict,
}

/// What happens to a call: the first case that holds decides, else `otherwise`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// In the order of trying.
    pub(super) cases: Vec<Case>,
    /// Without a case.
    pub(super) otherwise: Verdict,
}

impl Rule {
    /// A rule that looks at no argument.
    pub(super) fn always(verdict: Verdict) -> Rule {
        Rule { cases: Vec::new(), otherwise: verdict }
    }
}

/// The rule for numbers from `first` up to the next range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// The lowest number.
    pub(super) first: u32,
    /// What happens to all of them.
    pub(super) rule: Rule,
}

/// The rules of a profile, by call number; a number that is not there has no name.
#[derive(Debug)]
pub(super) struct Rules(BTreeMap<u32, Rule>);

/// What calls without a name get: programs take it as "this kernel is too old" and fall back.
const UNNAMED: Verdict = Verdict::Errno(libc::ENOSYS as u16);

impl Rules {
    /// Reads a profile. Every named call gets a rule; order and spelling of the data are checked.
    pub(super) fn read(json: &str) -> Result<Rules, Problem> {
        let written: WrittenProfile = serde_json::from_str(json)?;
        let unlisted = verdict(&written.unlisted)?;
        let known: BTreeMap<&str, u32> = numbers::CALLS.iter().map(|(name, number)| (*name, *number as u32)).collect();
        let mut rules: BTreeMap<u32, Rule> = known.values().map(|number| (*number, Rule::always(unlisted))).collect();
        let mut before = "";
        for call in &written.calls {
            check_entry(call, before)?;
            before = &call.name;
            let number = known.get(before).ok_or_else(|| Problem::UnknownCall { call: call.name.clone() })?;
            rules.insert(*number, rule(call)?);
        }
        Ok(Rules(rules))
    }

    /// All numbers there are, as the fewest ranges: ascending, the first from 0, no two neighbours alike.
    pub(super) fn ranges(&self) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        let mut next = 0;
        for (number, rule) in &self.0 {
            if *number > next {
                extend(&mut ranges, next, &Rule::always(UNNAMED));
            }
            extend(&mut ranges, *number, rule);
            next = number + 1;
        }
        extend(&mut ranges, next, &Rule::always(UNNAMED));
        ranges
    }
}

fn extend(ranges: &mut Vec<Range>, first: u32, rule: &Rule) {
    if ranges.last().is_none_or(|last| last.rule != *rule) {
        ranges.push(Range { first, rule: rule.clone() });
    }
}

fn check_entry(call: &WrittenCall, before: &str) -> Result<(), Problem> {
    if call.name.as_str() <= before {
        return Err(Problem::Order { call: call.name.clone() });
    }
    if call.reason.trim().is_empty() {
        return Err(Problem::NoReason { call: call.name.clone() });
    }
    Ok(())
}

fn rule(call: &WrittenCall) -> Result<Rule, Problem> {
    let cases = call.cases.iter().map(|written| case(written, &call.name)).collect::<Result<_, _>>()?;
    Ok(Rule { cases, otherwise: verdict(&call.verdict)? })
}

fn case(written: &WrittenCase, call: &str) -> Result<Case, Problem> {
    if written.when.is_empty() {
        return Err(Problem::EmptyCase { call: call.to_owned() });
    }
    let when = written.when.iter().map(|written| test(written, call)).collect::<Result<_, _>>()?;
    Ok(Case { when, verdict: verdict(&written.verdict)? })
}

fn test(written: &WrittenTest, call: &str) -> Result<Test, Problem> {
    if written.is.is_empty() || written.arg > ARGUMENT_MAX {
        return Err(Problem::EmptyCase { call: call.to_owned() });
    }
    let is: Vec<u32> = written.is.iter().map(value).collect::<Result<_, _>>()?;
    let mask = match written.mask.as_slice() {
        [] => u32::MAX,
        bits => bits.iter().map(value).try_fold(0, |mask, bits| bits.map(|bits| mask | bits))?,
    };
    if is.iter().any(|value| value & !mask != 0) {
        return Err(Problem::NeverHolds { call: call.to_owned() });
    }
    Ok(Test { arg: written.arg, mask, is })
}

/// System calls have six arguments.
const ARGUMENT_MAX: u8 = 5;

fn value(written: &WrittenValue) -> Result<u32, Problem> {
    match written {
        WrittenValue::Number(number) => Ok(*number),
        WrittenValue::Name(name) => {
            constants::argument(name).ok_or_else(|| Problem::UnknownValue { name: name.clone() })
        }
    }
}

fn verdict(name: &str) -> Result<Verdict, Problem> {
    match name {
        "allow" => Ok(Verdict::Allow),
        "ignore" => Ok(Verdict::Errno(0)),
        errno => {
            constants::errno(errno).map(Verdict::Errno).ok_or_else(|| Problem::UnknownValue { name: errno.to_owned() })
        }
    }
}

/// A profile as it stands in its file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenProfile {
    /// What the profile is for and how it is read, for people.
    #[expect(dead_code, reason = "read by people, kept so that the file may hold it")]
    about: Vec<String>,
    unlisted: String,
    calls: Vec<WrittenCall>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCall {
    name: String,
    verdict: String,
    #[serde(default)]
    cases: Vec<WrittenCase>,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCase {
    when: Vec<WrittenTest>,
    verdict: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTest {
    arg: u8,
    #[serde(default)]
    mask: Vec<WrittenValue>,
    is: Vec<WrittenValue>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum WrittenValue {
    Number(u32),
    Name(String),
}

/// What is wrong with a profile's data.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It is not JSON of the right form.
    #[error("the data is not a profile")]
    Form(#[from] serde_json::Error),
    /// A call that x86_64 has no number for.
    #[error("there is no system call {call}")]
    UnknownCall {
        /// The name in the data.
        call: String,
    },
    /// A verdict or an argument value without a meaning.
    #[error("there is no verdict, errno or argument value {name}")]
    UnknownValue {
        /// The name in the data.
        name: String,
    },
    /// Twice the same call, or not in the order of the alphabet.
    #[error("{call} is there twice, or not in its place in the alphabet")]
    Order {
        /// The call that is out of order.
        call: String,
    },
    /// Every verdict has to be explained.
    #[error("{call} has no reason")]
    NoReason {
        /// The call without a reason.
        call: String,
    },
    /// A case without a test, or a test without a value or of a seventh argument.
    #[error("a case of {call} has no test, or a test of it no value or no such argument")]
    EmptyCase {
        /// The call with the case.
        call: String,
    },
    /// A value with bits that its mask takes away.
    #[error("a test of {call} can never hold: its value lies outside its mask")]
    NeverHolds {
        /// The call with the test.
        call: String,
    },
}
