//! Turns ranges of call numbers into a classic BPF program: a binary search whose leaves are verdicts or tests of
//! arguments.
//!
//! Jumps of classic BPF go forward only, and conditional ones at most 255 instructions far. So the program is written
//! from its end to its start: whatever a jump leads to is there already, and its distance is known.
//!
//! ```text
//! load arch · not x86_64 → kill · load number · number ≥ 232 ? (number ≥ 294 ? … : …) : (number ≥ 101 ? … : …)
//! ```

use seccompiler::{BpfProgram, sock_filter};

use super::profile::{Case, Range, Rule, Test, Verdict};

/// The program for `ranges`, which ascend and start at 0. Calls of other architectures kill the process.
pub(super) fn assemble(ranges: &[Range]) -> BpfProgram {
    let mut program = Assembler::default();
    let search = program.search(ranges);
    program.fall_into(search);
    let native = program.push(LOAD, DATA_NUMBER, 0, 0);
    let foreign = program.verdict(Verdict::Kill);
    program.branch(JUMP_EQUAL, AUDIT_ARCH_X86_64, native, foreign);
    program.push(LOAD, DATA_ARCH, 0, 0);
    program.backwards.reverse();
    program.backwards
}

/// A place in the program: how many instructions there are from it to the end.
type Label = usize;

#[derive(Default)]
struct Assembler {
    backwards: Vec<sock_filter>,
    /// The nearest return of each verdict.
    returns: Vec<(Verdict, Label)>,
}

impl Assembler {
    fn search(&mut self, ranges: &[Range]) -> Label {
        match ranges {
            [] => self.verdict(Verdict::Kill),
            [range] => self.rule(&range.rule),
            _ => {
                let (lower, upper) = ranges.split_at(ranges.len() / 2);
                let above = self.search(upper);
                let below = self.search(lower);
                self.branch(JUMP_AT_LEAST, upper[0].first, above, below)
            }
        }
    }

    fn rule(&mut self, rule: &Rule) -> Label {
        let mut next = self.verdict(rule.otherwise);
        for case in rule.cases.iter().rev() {
            next = self.case(case, next);
        }
        next
    }

    fn case(&mut self, case: &Case, otherwise: Label) -> Label {
        let mut holds = self.verdict(case.verdict);
        for test in case.when.iter().rev() {
            holds = self.test(test, holds, otherwise);
        }
        holds
    }

    fn test(&mut self, test: &Test, holds: Label, fails: Label) -> Label {
        let mut compare = fails;
        for value in test.is.iter().rev() {
            compare = self.branch(JUMP_EQUAL, *value, holds, compare);
        }
        self.fall_into(compare);
        if test.mask != u32::MAX {
            self.push(AND, test.mask, 0, 0);
        }
        self.push(LOAD, DATA_ARGUMENTS + DATA_ARGUMENT_SIZE * u32::from(test.arg), 0, 0)
    }

    /// A place that returns the verdict, shared with all others that are near enough.
    fn verdict(&mut self, verdict: Verdict) -> Label {
        let known = self.returns.iter_mut().find(|(known, _)| *known == verdict);
        let label = self.backwards.len() + 1;
        match known {
            Some((_, near)) if self.backwards.len() - *near <= REACH => return *near,
            Some((_, far)) => *far = label,
            None => self.returns.push((verdict, label)),
        }
        self.push(RETURN, returned(verdict), 0, 0)
    }

    fn branch(&mut self, code: u16, operand: u32, yes: Label, no: Label) -> Label {
        let yes = self.within_reach(yes);
        let no = self.within_reach(no);
        let distance = |label: Label| u8::try_from(self.backwards.len() - label).expect("both labels are within reach");
        let (yes, no) = (distance(yes), distance(no));
        self.push(code, operand, yes, no)
    }

    /// The label itself, or a stepping stone to it where a conditional jump would not get that far.
    fn within_reach(&mut self, label: Label) -> Label {
        let distance = self.backwards.len() - label;
        if distance <= REACH {
            return label;
        }
        match &self.backwards[label - 1] {
            stop if stop.code == RETURN => self.push(RETURN, stop.k, 0, 0),
            _ => self.push(JUMP, distance as u32, 0, 0),
        }
    }

    /// Makes sure that what is pushed next runs on into `label`.
    fn fall_into(&mut self, label: Label) {
        let distance = self.backwards.len() - label;
        if distance > 0 {
            self.push(JUMP, distance as u32, 0, 0);
        }
    }

    fn push(&mut self, code: u16, operand: u32, yes: u8, no: u8) -> Label {
        self.backwards.push(sock_filter { code, jt: yes, jf: no, k: operand });
        self.backwards.len()
    }
}

/// How far a conditional jump is taken to go: 255, less the stepping stones that one branch may add.
const REACH: usize = 253;

fn returned(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Allow => libc::SECCOMP_RET_ALLOW,
        Verdict::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
        Verdict::Kill => libc::SECCOMP_RET_KILL_PROCESS,
    }
}

/// The instructions that we use (linux/bpf_common.h).
pub(super) const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
pub(super) const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
pub(super) const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
pub(super) const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
pub(super) const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
pub(super) const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Offsets in `struct seccomp_data` (linux/seccomp.h), in bytes; of an argument the low half comes first.
pub(super) const DATA_NUMBER: u32 = 0;
pub(super) const DATA_ARCH: u32 = 4;
pub(super) const DATA_ARGUMENTS: u32 = 16;
pub(super) const DATA_ARGUMENT_SIZE: u32 = 8;

/// linux/audit.h: EM_X86_64, 64 bits, little-endian.
pub(super) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
