//! What the verdicts of all policies about a build come to. Pure: who is asked, and how, is the caller's.

use super::BuildRequest;
use super::apply;
use super::verdict::{Answer, BuildChange, BuildDecision, BuildDenial, BuildWarning, Refusal, Verdict};
use crate::decide::Voice;
use crate::failure::{Asked, Failure};
use crate::verdict::{Mode, OnFailure, PolicyVerdict, VerdictKind};

/// A build on its way past the policies.
pub(crate) struct Docket {
    request: BuildRequest,
    changes: Vec<BuildChange>,
    warnings: Vec<BuildWarning>,
    verdicts: Vec<PolicyVerdict>,
}

impl Docket {
    /// A build that no policy has seen.
    pub(crate) fn new(request: BuildRequest) -> Docket {
        Docket { request, changes: Vec::new(), warnings: Vec::new(), verdicts: Vec::new() }
    }

    /// The build as the policies so far left it.
    pub(crate) fn request(&self) -> &BuildRequest {
        &self.request
    }

    /// All were asked, or one refused.
    pub(crate) fn close(self, denial: Option<BuildDenial>) -> BuildDecision {
        let Docket { request, changes, warnings, verdicts } = self;
        BuildDecision { denial, changes, warnings, verdicts, request: Some(Box::new(request)) }
    }

    /// Takes down what a policy said, and follows it as far as its mode goes; gives back a refusal that ends the matter.
    pub(crate) fn hear(&mut self, voice: Voice<'_>, asked: Asked<Answer>, micros: u64) -> Option<BuildDenial> {
        let checked = asked.result.and_then(|answer| {
            apply::check(&answer).map_err(Failure::malformed)?;
            Ok(answer)
        });
        let mut entry = PolicyVerdict::unheard(voice, asked.fuel, micros);
        let followed = checked.and_then(|answer| self.follow(voice, answer, &mut entry));
        let denial = followed.unwrap_or_else(|failure| self.suffer(voice, &failure, &mut entry));
        self.verdicts.push(entry);
        denial
    }

    fn follow(
        &mut self,
        voice: Voice<'_>,
        answer: Answer,
        entry: &mut PolicyVerdict,
    ) -> Result<Option<BuildDenial>, Failure> {
        let denial = match answer.verdict {
            Verdict::Allow => None,
            Verdict::Deny(refusal) => self.refuse(voice, refusal, entry),
            Verdict::Change(changes) => {
                self.change(voice, changes, entry)?;
                None
            }
        };
        for warning in answer.warnings {
            self.warn(voice, &warning.code, warning.message, warning.line);
        }
        Ok(denial)
    }

    fn refuse(&mut self, voice: Voice<'_>, refusal: Refusal, entry: &mut PolicyVerdict) -> Option<BuildDenial> {
        entry.refuse(&refusal.code, &refusal.reason);
        let Refusal { code, reason, hint, line } = refusal;
        if voice.mode == Mode::Enforce {
            return Some(BuildDenial { policy: voice.name.to_owned(), code, reason, hint, line });
        }
        self.warn(voice, &code, format!("would be refused: {reason}"), line);
        None
    }

    fn change(
        &mut self,
        voice: Voice<'_>,
        changes: Vec<BuildChange>,
        entry: &mut PolicyVerdict,
    ) -> Result<(), Failure> {
        let mut request = self.request.clone();
        let made = apply::apply(&mut request, changes).map_err(Failure::malformed)?;
        let (fields, changes): (Vec<String>, Vec<BuildChange>) = made.into_iter().unzip();
        entry.verdict = VerdictKind::Change;
        entry.changed = fields;
        entry.changed.dedup();
        if voice.mode == Mode::Enforce {
            self.request = request;
            self.changes.extend(changes);
        } else if !entry.changed.is_empty() {
            self.warn(voice, "would-change", format!("would be changed: {}", entry.changed.join(", ")), 0);
        }
        Ok(())
    }

    fn suffer(&mut self, voice: Voice<'_>, failure: &Failure, entry: &mut PolicyVerdict) -> Option<BuildDenial> {
        let (code, reason) = entry.fail(voice, failure);
        if (voice.mode, voice.on_failure) == (Mode::Enforce, OnFailure::Deny) {
            let hint = "this is a fault of the policy, not of the build: tell who binds the policies".to_owned();
            return Some(BuildDenial { policy: voice.name.to_owned(), code: code.to_owned(), reason, hint, line: 0 });
        }
        self.warn(voice, code, reason, 0);
        None
    }

    /// A policy in the shadow is recorded and never heard.
    fn warn(&mut self, voice: Voice<'_>, code: &str, message: String, line: u32) {
        if voice.mode != Mode::Shadow {
            let (policy, code) = (voice.name.to_owned(), code.to_owned());
            self.warnings.push(BuildWarning { policy, code, message, line });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::verdict::Warning;
    use crate::testing::build;

    const MODES: [Mode; 3] = [Mode::Enforce, Mode::Warn, Mode::Shadow];

    fn heard(mode: Mode, on_failure: OnFailure, result: Result<Verdict, Failure>) -> BuildDecision {
        let mut docket = Docket::new(build());
        let voice = Voice { name: "p", digest: "sha256:0", mode, on_failure };
        let warnings = vec![Warning { code: "w".into(), message: "mind".into(), line: 2 }];
        let asked = Asked { result: result.map(|verdict| Answer { verdict, warnings }), fuel: 1 };
        let denial = docket.hear(voice, asked, 1);
        docket.close(denial)
    }

    #[test]
    fn only_an_enforced_refusal_refuses_and_it_keeps_its_line() {
        let refusal = || Refusal { code: "no".into(), reason: "it is so".into(), hint: String::new(), line: 7 };
        let decisions = MODES.map(|mode| heard(mode, OnFailure::Deny, Ok(Verdict::Deny(refusal()))));
        let lines = decisions.each_ref().map(|decision| decision.denial.as_ref().map(|denial| denial.line));
        assert_eq!(lines, [Some(7), None, None]);
        assert_eq!(decisions.each_ref().map(|decision| decision.warnings.len()), [1, 2, 0]);
        assert_eq!((decisions[1].warnings[0].line, decisions[1].warnings[0].code.as_str()), (7, "no"));
    }

    #[test]
    fn only_an_enforced_change_is_made() {
        let change = || BuildChange::ForceUser("1000".into());
        let users = MODES.map(|mode| {
            let decision = heard(mode, OnFailure::Deny, Ok(Verdict::Change(vec![change()])));
            assert_eq!(decision.verdicts[0].changed, ["user"]);
            let user = decision.request.expect("it is there").stages[1].user.clone();
            (decision.changes, user)
        });
        let unchanged = (Vec::new(), String::new());
        assert_eq!(users, [(vec![change()], "1000".into()), unchanged.clone(), unchanged]);
    }

    #[test]
    fn a_failing_policy_refuses_the_build_unless_its_binding_allows() {
        let failure = || Err(Failure::malformed("nonsense"));
        let denied = heard(Mode::Enforce, OnFailure::Deny, failure());
        assert_eq!(denied.denial.map(|denial| denial.code).as_deref(), Some("policy-malformed-answer"));
        let allowed = heard(Mode::Enforce, OnFailure::Allow, failure());
        assert!(allowed.denial.is_none() && allowed.warnings[0].code == "policy-malformed-answer");
    }

    #[test]
    fn of_changes_of_which_one_is_impossible_none_is_made() {
        let changes = vec![BuildChange::ForceUser("1000".into()), BuildChange::ForceUser(String::new())];
        let decision = heard(Mode::Enforce, OnFailure::Allow, Ok(Verdict::Change(changes)));
        assert_eq!((decision.request, decision.changes), (Some(Box::new(build())), Vec::new()));
    }
}
