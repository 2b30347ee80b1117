//! Checks what a policy answers to the `build` hook and applies its changes. Pure: nothing here knows WebAssembly.

use super::verdict::{Answer, BuildChange, Verdict};
use super::{BuildRequest, BuildStage};
use crate::patch::{CHANGES_MAX, check_count, check_name, check_refusal, check_text, check_warnings, set_pair};

/// Hexadecimal digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// Checks the parts of an answer that do not depend on the build.
///
/// # Errors
/// The first part that breaks the contract.
pub(crate) fn check(answer: &Answer) -> Result<(), String> {
    check_warnings(answer.warnings.iter().map(|warning| (warning.code.as_str(), warning.message.as_str())))?;
    match &answer.verdict {
        Verdict::Allow => Ok(()),
        Verdict::Deny(refusal) => check_refusal(&refusal.code, &refusal.reason, &refusal.hint),
        Verdict::Change(changes) => check_count("changes", changes.len(), CHANGES_MAX),
    }
}

/// Makes the changes, in order, and gives back those that had an effect, each with the field that it changed.
///
/// # Errors
/// The first change that cannot be made; the request is then as far as the changes before it left it.
pub(crate) fn apply(
    request: &mut BuildRequest,
    changes: Vec<BuildChange>,
) -> Result<Vec<(String, BuildChange)>, String> {
    let mut made = Vec::new();
    for change in changes {
        if let Some(field) = apply_one(request, &change)? {
            made.push((field, change));
        }
    }
    Ok(made)
}

fn apply_one(request: &mut BuildRequest, change: &BuildChange) -> Result<Option<String>, String> {
    match change {
        BuildChange::AddLabel { name, value } => {
            check_name("labels", name)?;
            check_text("labels", value)?;
            Ok(set_pair("labels", &mut request.labels, name.clone(), value.clone()))
        }
        BuildChange::PinDigest { reference, digest } => pin(request, reference, digest),
        BuildChange::ForceUser(user) => {
            check_name("user", user)?;
            let target = request.target;
            let is_target = |stage: &&mut BuildStage| stage.index == target;
            let stage = request.stages.iter_mut().find(is_target).ok_or("user: the build has no target stage")?;
            let is_changed = stage.user != *user;
            stage.user.clone_from(user);
            Ok(is_changed.then(|| "user".to_owned()))
        }
    }
}

fn pin(request: &mut BuildRequest, reference: &str, digest: &str) -> Result<Option<String>, String> {
    let is_digest = digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == SHA256_DIGITS && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    });
    if !is_digest {
        return Err(format!("images: `{digest:.80}` is no digest as in `sha256:…`"));
    }
    let (mut is_used, mut is_changed) = (false, false);
    for image in request.images_mut().filter(|image| image.reference == reference) {
        is_used = true;
        match &image.digest {
            // What was resolved is what was checked: a policy may hold on to it, not swap it.
            Some(known) if known != digest => {
                return Err(format!("images: `{reference:.200}` is {known}, and cannot be pinned to {digest}"));
            }
            _ if image.is_pinned => {}
            _ => {
                image.digest = Some(digest.to_owned());
                image.is_pinned = true;
                image.reference = format!("{reference}@{digest}");
                is_changed = true;
            }
        }
    }
    if !is_used {
        return Err(format!("images: the build uses no `{reference:.200}`"));
    }
    Ok(is_changed.then(|| format!("images.{reference}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::build;

    const BASE: &str = "docker.io/library/debian:12";

    fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(SHA256_DIGITS))
    }

    fn pin_base(digest: String) -> BuildChange {
        BuildChange::PinDigest { reference: BASE.into(), digest }
    }

    #[test]
    fn a_pin_holds_for_every_use_of_the_image_and_for_no_other() {
        let mut request = build();
        let made = apply(&mut request, vec![pin_base(digest('a'))]).expect("it can be pinned");
        assert_eq!(made, [(format!("images.{BASE}"), pin_base(digest('a')))]);
        let images: Vec<(String, bool)> =
            request.images_mut().map(|image| (image.reference.clone(), image.is_pinned)).collect();
        let pinned = format!("{BASE}@{}", digest('a'));
        let tools = format!("docker.io/library/tools@{}", digest('1'));
        assert_eq!(images, [(pinned.clone(), true), (pinned, true), (tools, true)]);
    }

    #[test]
    fn a_change_that_cannot_be_made_is_refused() {
        let refused = |change| apply(&mut build(), vec![change]).expect_err("the change should have been refused");
        assert!(refused(pin_base("sha256:abc".into())).contains("no digest"));
        assert!(refused(pin_base(digest('A'))).contains("no digest"));
        let other = BuildChange::PinDigest { reference: "docker.io/library/x:1".into(), digest: digest('a') };
        assert!(refused(other).contains("uses no"));
        let reference = format!("docker.io/library/tools@{}", digest('1'));
        assert!(refused(BuildChange::PinDigest { reference, digest: digest('2') }).contains("cannot be pinned to"));
        assert!(refused(BuildChange::ForceUser(String::new())).contains("user"));
        assert!(refused(BuildChange::AddLabel { name: String::new(), value: "x".into() }).contains("labels"));
    }

    #[test]
    fn what_changes_nothing_is_not_told() {
        let mut request = build();
        let user = || BuildChange::ForceUser("1000".into());
        assert_eq!(apply(&mut request, vec![user(), user()]).expect("it can be forced").len(), 1);
        assert_eq!(request.stages[1].user, "1000");
        assert_eq!(request.stages[0].user, "");
    }

    fn any_change() -> impl Strategy<Value = BuildChange> {
        prop_oneof![
            ("[a-c]{0,2}", "[a-c]{0,2}").prop_map(|(name, value)| BuildChange::AddLabel { name, value }),
            "[0-9a-c:]{0,3}".prop_map(BuildChange::ForceUser),
            prop_oneof![Just(BASE.to_owned()), "[a-z]{1,3}"].prop_flat_map(|reference| {
                "sha256:[ab]{64}|x"
                    .prop_map(move |digest| BuildChange::PinDigest { reference: reference.clone(), digest })
            }),
        ]
    }

    proptest! {
        #[test]
        fn changes_touch_only_labels_images_and_the_user_of_the_target(
            changes in prop::collection::vec(any_change(), 0..6)
        ) {
            let mut request = build();
            let Ok(made) = apply(&mut request, changes) else { return Ok(()) };
            // What was made comes to the same when it is made once more, by itself.
            let mut again = build();
            let changes: Vec<BuildChange> = made.into_iter().map(|(_, change)| change).collect();
            prop_assert!(apply(&mut again, changes).is_ok());
            prop_assert_eq!(&again, &request);
            for image in request.images_mut() {
                prop_assert!(!image.is_pinned || image.digest.as_ref().is_some_and(|digest| image.reference.ends_with(digest.as_str())));
            }
            let mut expected = build();
            expected.labels.clone_from(&request.labels);
            expected.stages[1].user.clone_from(&request.stages[1].user);
            let images: Vec<_> = request.images_mut().map(|image| image.clone()).collect();
            expected.images_mut().zip(images).for_each(|(old, new)| *old = new);
            prop_assert_eq!(expected, request);
        }
    }
}
