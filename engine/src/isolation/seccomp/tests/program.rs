//! The program against two oracles: a linear search over the rules, and what seccompiler makes of the same rules.

use std::collections::BTreeMap;

use proptest::prelude::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::isolation::seccomp::machine::{self, Call};
use crate::isolation::seccomp::profile::{Case, Range, Rule, Rules, Test, Verdict};
use crate::isolation::seccomp::{Profile, compile, numbers, tree};

/// The compactness that an install of some tens of microseconds rests on.
const INSTRUCTIONS_GOAL: usize = 200;
const STEPS_GOAL: usize = 12;

#[test]
fn a_filter_is_short_and_shallow() {
    for profile in [Profile::Job, Profile::Worker] {
        let program = compile(profile).unwrap().program;
        let steps = |range: &Range| machine::run(&program, &native(range.first, [0; 6])).steps;
        let ranges = Rules::read(profile.source()).unwrap().ranges();
        let deepest = ranges.iter().filter(|range| range.rule.cases.is_empty()).map(steps).max().unwrap();
        assert!(program.len() <= INSTRUCTIONS_GOAL, "{profile:?} has {} instructions", program.len());
        assert!(deepest <= STEPS_GOAL, "{profile:?} takes {deepest} steps");
    }
}

#[test]
fn foreign_architectures_kill_and_x32_is_unknown() {
    const AUDIT_ARCH_I386: u32 = 0x4000_0003;
    for profile in [Profile::Job, Profile::Worker] {
        let program = compile(profile).unwrap().program;
        for number in 0..600 {
            let foreign = Call { arch: AUDIT_ARCH_I386, ..native(number, [0; 6]) };
            assert_eq!(machine::run(&program, &foreign).returned, libc::SECCOMP_RET_KILL_PROCESS);
            let x32 = native(0x4000_0000 | number, [0; 6]);
            assert_eq!(machine::run(&program, &x32).returned, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rules in, verdicts out: whatever the rules are, and however far the jumps.
    #[test]
    fn the_tree_decides_as_a_linear_search_does(ranges in any_ranges(), args in any_args(&[0, 1, 2, 3])) {
        let program = tree::assemble(&ranges);
        for range in &ranges {
            for number in [range.first.saturating_sub(1), range.first, range.first.saturating_add(1), u32::MAX] {
                let returned = machine::run(&program, &native(number, args)).returned;
                prop_assert_eq!(returned, u32::from(action(decide(&ranges, number, &args))));
            }
        }
    }

    /// The same rules, compiled by seccompiler as one filter a case, give the same verdicts.
    #[test]
    fn the_filters_decide_as_seccompiler_does(args in any_args(&values_in_use())) {
        for profile in [Profile::Job, Profile::Worker] {
            let ours = compile(profile).unwrap().program;
            let oracle = Oracle::of(profile);
            let strange = [0x4000_0000, 0x4000_0000 + 101, 0x7fff_ffff, 0x8000_0000, u32::MAX];
            for number in (0..600).chain(strange) {
                let call = native(number, args);
                prop_assert_eq!(machine::run(&ours, &call).returned, oracle.run(&call), "{:?} {:?}", profile, call);
            }
        }
    }
}

fn native(number: u32, args: [u64; 6]) -> Call {
    Call { arch: tree::AUDIT_ARCH_X86_64, number, args }
}

fn decide(ranges: &[Range], number: u32, args: &[u64; 6]) -> Verdict {
    let rule = &ranges.iter().rev().find(|range| range.first <= number).expect("the first range starts at 0").rule;
    let holds = |test: &Test| test.is.contains(&(args[usize::from(test.arg)] as u32 & test.mask));
    rule.cases.iter().find(|case| case.when.iter().all(holds)).map_or(rule.otherwise, |case| case.verdict)
}

/// The rules of a profile as seccompiler compiles them. It knows two actions a filter, so each case is a filter.
struct Oracle {
    unlisted: SeccompAction,
    calls: BTreeMap<u32, (Vec<(BpfProgram, Verdict)>, Verdict)>,
}

impl Oracle {
    fn of(profile: Profile) -> Oracle {
        let rules = Rules::read(profile.source()).unwrap().ranges();
        let rule = |number| &rules.iter().rev().find(|range| range.first <= number).unwrap().rule;
        let calls = numbers::CALLS.iter().map(|(_, number)| *number as u32);
        let calls = calls.map(|number| {
            let rule: &Rule = rule(number);
            let cases = rule.cases.iter().map(|case| (filter(number, case), case.verdict)).collect();
            (number, (cases, rule.otherwise))
        });
        Oracle { unlisted: SeccompAction::Errno(libc::ENOSYS as u32), calls: calls.collect() }
    }

    fn run(&self, call: &Call) -> u32 {
        let Some((cases, otherwise)) = self.calls.get(&call.number) else { return self.unlisted.clone().into() };
        let holds = |program: &BpfProgram| machine::run(program, call).returned == libc::SECCOMP_RET_ALLOW;
        let verdict = cases.iter().find(|(program, _)| holds(program)).map_or(otherwise, |(_, verdict)| verdict);
        action(*verdict).into()
    }
}

/// A filter that allows `number` exactly when the case holds.
fn filter(number: u32, case: &Case) -> BpfProgram {
    let mut alternatives = vec![Vec::new()];
    for test in &case.when {
        let longer = |conditions: Vec<SeccompCondition>| {
            test.is.iter().map(move |value| {
                let operator = SeccompCmpOp::MaskedEq(u64::from(test.mask));
                let condition =
                    SeccompCondition::new(test.arg, SeccompCmpArgLen::Dword, operator, u64::from(*value)).unwrap();
                [conditions.clone(), vec![condition]].concat()
            })
        };
        alternatives = alternatives.into_iter().flat_map(longer).collect();
    }
    let rules = alternatives.into_iter().map(|conditions| SeccompRule::new(conditions).unwrap()).collect();
    let rules = BTreeMap::from([(i64::from(number), rules)]);
    let filter = SeccompFilter::new(rules, SeccompAction::KillThread, SeccompAction::Allow, TargetArch::x86_64);
    filter.unwrap().try_into().unwrap()
}

fn action(verdict: Verdict) -> SeccompAction {
    match verdict {
        Verdict::Allow => SeccompAction::Allow,
        Verdict::Errno(errno) => SeccompAction::Errno(u32::from(errno)),
        Verdict::Kill => SeccompAction::KillProcess,
    }
}

/// All values and masks that the profiles compare with: arguments made of them come near every case.
fn values_in_use() -> Vec<u32> {
    let ranges = [Profile::Job, Profile::Worker].map(|profile| Rules::read(profile.source()).unwrap().ranges());
    let tests = ranges.iter().flatten().flat_map(|range| &range.rule.cases).flat_map(|case| &case.when);
    tests.flat_map(|test| test.is.iter().copied().chain([test.mask])).collect()
}

/// Six arguments whose low halves are of `values` or anything, and whose high halves are anything.
fn any_args(values: &[u32]) -> impl Strategy<Value = [u64; 6]> + use<> {
    let low = prop_oneof![4 => prop::sample::select(values.to_vec()), 1 => any::<u32>()];
    prop::array::uniform6((low, any::<u32>()).prop_map(|(low, high)| u64::from(high) << 32 | u64::from(low)))
}

/// Ranges from few to more than a conditional jump can cross.
fn any_ranges() -> impl Strategy<Value = Vec<Range>> {
    prop::collection::vec((1..40_u32, any_rule()), 1..500).prop_map(|parts| {
        let mut first = 0;
        let place = |(width, rule)| {
            let range = Range { first, rule };
            first += width;
            range
        };
        parts.into_iter().map(place).collect()
    })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let plain = any_verdict().prop_map(Rule::always);
    let cases = (prop::collection::vec(any_case(), 1..5), any_verdict())
        .prop_map(|(cases, otherwise)| Rule { cases, otherwise });
    prop_oneof![3 => plain, 1 => cases]
}

fn any_case() -> impl Strategy<Value = Case> {
    (prop::collection::vec(any_test(), 1..4), any_verdict()).prop_map(|(when, verdict)| Case { when, verdict })
}

fn any_test() -> impl Strategy<Value = Test> {
    let mask = prop_oneof![Just(u32::MAX), Just(1), Just(2), Just(3)];
    (0..6_u8, mask, prop::collection::vec(0..4_u32, 1..4)).prop_map(|(arg, mask, is)| Test { arg, mask, is })
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![Just(Verdict::Allow), (0..5_u16).prop_map(Verdict::Errno), Just(Verdict::Kill)]
}
