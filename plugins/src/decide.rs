//! What the verdicts of all policies come to. Pure: who is asked, and how, is the caller's.

use crate::admission::Admission;
use crate::failure::{Asked, Failure};
use crate::patch;
use crate::verdict::{
    Answer, Change, Decision, Denial, Mode, OnFailure, Outcome, PolicyVerdict, PolicyWarning, Refusal, Verdict,
    VerdictKind,
};

/// Who answers, and how much it weighs.
#[derive(Clone, Copy)]
pub(crate) struct Voice<'a> {
    pub(crate) name: &'a str,
    pub(crate) digest: &'a str,
    pub(crate) mode: Mode,
    pub(crate) on_failure: OnFailure,
}

impl PolicyVerdict {
    /// The entry of a policy that was asked, before its answer is looked at.
    pub(crate) fn unheard(voice: Voice<'_>, fuel: u64, micros: u64) -> PolicyVerdict {
        PolicyVerdict {
            policy: voice.name.to_owned(),
            digest: voice.digest.to_owned(),
            mode: voice.mode,
            verdict: VerdictKind::Allow,
            changed: Vec::new(),
            code: String::new(),
            reason: String::new(),
            fuel,
            micros,
        }
    }

    /// The policy refused.
    pub(crate) fn refuse(&mut self, code: &str, reason: &str) {
        self.verdict = VerdictKind::Deny;
        code.clone_into(&mut self.code);
        reason.clone_into(&mut self.reason);
    }

    /// The policy could not decide; the code and the sentence for people.
    pub(crate) fn fail(&mut self, voice: Voice<'_>, failure: &Failure) -> (&'static str, String) {
        let code = failure.kind.code();
        let reason = format!("policy `{}` could not decide: {}", voice.name, failure.kind);
        tracing::warn!(policy = voice.name, code, detail = failure.detail, "{reason}");
        self.verdict = VerdictKind::Error;
        self.code = code.to_owned();
        self.reason = failure.describe();
        (code, reason)
    }
}

/// A job on its way past the policies.
pub(crate) struct Docket {
    job: Admission,
    warnings: Vec<PolicyWarning>,
    verdicts: Vec<PolicyVerdict>,
}

impl Docket {
    /// A job that no policy has seen.
    pub(crate) fn new(job: Admission) -> Docket {
        Docket { job, warnings: Vec::new(), verdicts: Vec::new() }
    }

    /// The job as the policies so far left it.
    pub(crate) fn job(&self) -> &Admission {
        &self.job
    }

    /// Nobody refused.
    pub(crate) fn admit(self) -> Decision {
        Decision { outcome: Outcome::Admitted(Box::new(self.job)), warnings: self.warnings, verdicts: self.verdicts }
    }

    /// Somebody did.
    pub(crate) fn deny(self, denial: Denial) -> Decision {
        Decision { outcome: Outcome::Denied(denial), warnings: self.warnings, verdicts: self.verdicts }
    }

    /// Takes down what a policy said, and follows it as far as its mode goes.
    ///
    /// # Errors
    /// The refusal that ends the matter.
    pub(crate) fn hear(&mut self, voice: Voice<'_>, asked: Asked<Answer>, micros: u64) -> Result<(), Denial> {
        let checked = asked.result.and_then(|answer| {
            patch::check(&answer).map_err(Failure::malformed)?;
            Ok(answer)
        });
        let mut entry = PolicyVerdict::unheard(voice, asked.fuel, micros);
        let followed = match checked {
            Ok(answer) => self.follow(voice, answer, &mut entry),
            Err(failure) => Err(failure),
        };
        let outcome = followed.unwrap_or_else(|failure| self.suffer(voice, &failure, &mut entry));
        self.verdicts.push(entry);
        outcome.map_or(Ok(()), Err)
    }

    fn follow(
        &mut self,
        voice: Voice<'_>,
        answer: Answer,
        entry: &mut PolicyVerdict,
    ) -> Result<Option<Denial>, Failure> {
        let denial = match answer.verdict {
            Verdict::Allow => None,
            Verdict::Deny(refusal) => self.refuse(voice, refusal, entry),
            Verdict::Change(changes) => {
                self.change(voice, changes, entry)?;
                None
            }
        };
        if voice.mode != Mode::Shadow {
            for warning in answer.warnings {
                self.warn(voice, &warning.code, warning.message);
            }
        }
        Ok(denial)
    }

    fn refuse(&mut self, voice: Voice<'_>, refusal: Refusal, entry: &mut PolicyVerdict) -> Option<Denial> {
        entry.refuse(&refusal.code, &refusal.reason);
        let Refusal { code, reason, hint } = refusal;
        match voice.mode {
            Mode::Enforce => Some(Denial { policy: voice.name.to_owned(), code, reason, hint }),
            Mode::Warn => {
                self.warn(voice, &code, format!("would be refused: {reason}"));
                None
            }
            Mode::Shadow => None,
        }
    }

    fn change(&mut self, voice: Voice<'_>, changes: Vec<Change>, entry: &mut PolicyVerdict) -> Result<(), Failure> {
        let mut job = self.job.clone();
        entry.changed = patch::apply(&mut job, changes).map_err(Failure::malformed)?;
        entry.verdict = VerdictKind::Change;
        match voice.mode {
            Mode::Enforce => self.job = job,
            Mode::Warn if !entry.changed.is_empty() => {
                self.warn(voice, "would-change", format!("would be changed: {}", entry.changed.join(", ")));
            }
            Mode::Warn | Mode::Shadow => {}
        }
        Ok(())
    }

    fn suffer(&mut self, voice: Voice<'_>, failure: &Failure, entry: &mut PolicyVerdict) -> Option<Denial> {
        let (code, reason) = entry.fail(voice, failure);
        match (voice.mode, voice.on_failure) {
            (Mode::Enforce, OnFailure::Deny) => Some(Denial {
                policy: voice.name.to_owned(),
                code: code.to_owned(),
                reason,
                hint: "this is a fault of the policy, not of the job: tell who runs the service".to_owned(),
            }),
            (Mode::Enforce, OnFailure::Allow) | (Mode::Warn, _) => {
                self.warn(voice, code, reason);
                None
            }
            (Mode::Shadow, _) => None,
        }
    }

    fn warn(&mut self, voice: Voice<'_>, code: &str, message: String) {
        self.warnings.push(PolicyWarning { policy: voice.name.to_owned(), code: code.to_owned(), message });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::job;
    use crate::verdict::{LimitName, Warning};

    const MODES: [Mode; 3] = [Mode::Enforce, Mode::Warn, Mode::Shadow];

    fn heard(mode: Mode, on_failure: OnFailure, result: Result<Verdict, Failure>) -> Decision {
        let mut docket = Docket::new(job());
        let voice = Voice { name: "p", digest: "sha256:0", mode, on_failure };
        let warnings = vec![Warning { code: "w".into(), message: "mind".into() }];
        let asked = Asked { result: result.map(|verdict| Answer { verdict, warnings }), fuel: 1 };
        match docket.hear(voice, asked, 1) {
            Ok(()) => docket.admit(),
            Err(denial) => docket.deny(denial),
        }
    }

    fn refusal() -> Verdict {
        Verdict::Deny(Refusal { code: "no".into(), reason: "it is so".into(), hint: String::new() })
    }

    fn is_admitted(decision: &Decision) -> bool {
        matches!(decision.outcome, Outcome::Admitted(_))
    }

    #[test]
    fn only_an_enforced_refusal_refuses() {
        let decisions = MODES.map(|mode| heard(mode, OnFailure::Deny, Ok(refusal())));
        assert_eq!(decisions.each_ref().map(is_admitted), [false, true, true]);
        assert_eq!(decisions.each_ref().map(|decision| decision.warnings.len()), [1, 2, 0]);
        for decision in decisions {
            assert_eq!(decision.verdicts[0].verdict, VerdictKind::Deny);
            assert_eq!(decision.verdicts[0].code, "no");
        }
    }

    #[test]
    fn only_an_enforced_change_is_made() {
        let smaller = || Verdict::Change(vec![Change::SetLimit { name: LimitName::Pids, value: 2 }]);
        let pids = MODES.map(|mode| {
            let decision = heard(mode, OnFailure::Deny, Ok(smaller()));
            assert_eq!(decision.verdicts[0].changed, ["limits.pids"]);
            match decision.outcome {
                Outcome::Admitted(job) => job.limits.pids,
                Outcome::Denied(denial) => panic!("refused: {denial:?}"),
            }
        });
        assert_eq!(pids, [2, job().limits.pids, job().limits.pids]);
    }

    #[test]
    fn a_failing_policy_refuses_and_is_named_unless_its_binding_allows() {
        let failure = || Err(Failure::malformed("nonsense"));
        let denied = heard(Mode::Enforce, OnFailure::Deny, failure());
        match &denied.outcome {
            Outcome::Denied(denial) => {
                assert_eq!((denial.policy.as_str(), denial.code.as_str()), ("p", "policy-malformed-answer"));
            }
            Outcome::Admitted(_) => panic!("a failing policy admitted"),
        }
        let allowed = heard(Mode::Enforce, OnFailure::Allow, failure());
        assert!(is_admitted(&allowed));
        assert_eq!(allowed.warnings[0].code, "policy-malformed-answer");
        let shadowed = heard(Mode::Shadow, OnFailure::Deny, failure());
        assert!(is_admitted(&shadowed) && shadowed.warnings.is_empty());
        assert_eq!(shadowed.verdicts[0].verdict, VerdictKind::Error);
    }

    #[test]
    fn an_impossible_change_is_a_failure_and_nothing_of_it_is_made() {
        let changes = vec![Change::SetUser("1".into()), Change::SetLimit { name: LimitName::Pids, value: 0 }];
        let decision = heard(Mode::Enforce, OnFailure::Allow, Ok(Verdict::Change(changes)));
        assert_eq!(decision.outcome, Outcome::Admitted(Box::new(job())));
        assert_eq!(decision.verdicts[0].code, "policy-malformed-answer");
    }
}
