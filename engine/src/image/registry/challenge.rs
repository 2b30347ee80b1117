//! What a registry wants before it answers: the `WWW-Authenticate` header as RFC 9110 writes it, with several challenges
//! in one line. Only reads; what to do about it is decided elsewhere.

/// Longest header that is read, in bytes.
pub const CHALLENGE_BYTES_MAX: usize = 16 * 1024;
/// Most challenges and parameters of one header.
const PARTS_MAX: usize = 64;

/// One way of signing in that a registry offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    /// The scheme in lower case, as in `bearer`.
    pub scheme: String,
    /// Its parameters in their order, names in lower case.
    pub parameters: Vec<(String, String)>,
}

/// Why a header is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeError {
    /// It is too long, or has too many parts.
    #[error("the challenge is too long")]
    Long,
    /// It is no challenge.
    #[error("the challenge cannot be understood at byte {0}")]
    Malformed(usize),
    /// A parameter comes twice: two programs would read two meanings.
    #[error("the challenge says something twice")]
    Repeated,
}

impl Challenge {
    /// The value of a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Reads a `WWW-Authenticate` header.
///
/// # Errors
/// A header that passes a bound, is malformed, or repeats a parameter.
pub fn parse(text: &str) -> Result<Vec<Challenge>, ChallengeError> {
    if text.len() > CHALLENGE_BYTES_MAX {
        return Err(ChallengeError::Long);
    }
    let mut cursor = Cursor { text, at: 0 };
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut parts = 0;
    cursor.skip_separators();
    while !cursor.is_at_end() {
        parts += 1;
        if parts > PARTS_MAX {
            return Err(ChallengeError::Long);
        }
        // A word with `=` behind it belongs to the challenge before, any other one opens a new one.
        let start = cursor.at;
        let word = cursor.token().ok_or(ChallengeError::Malformed(start))?.to_ascii_lowercase();
        match (cursor.value()?, challenges.last_mut()) {
            (Some(value), Some(challenge)) => challenge.add(word, value)?,
            (Some(_), None) => return Err(ChallengeError::Malformed(start)),
            (None, _) => {
                challenges.push(Challenge { scheme: word, parameters: Vec::new() });
                if cursor.skip_token68() {
                    cursor.skip_spaces();
                    if !cursor.is_at_end() && !cursor.text[cursor.at..].starts_with(',') {
                        return Err(ChallengeError::Malformed(cursor.at));
                    }
                }
                cursor.skip_separators();
                continue;
            }
        }
        cursor.skip_spaces();
        if !cursor.is_at_end() && !cursor.text[cursor.at..].starts_with(',') {
            return Err(ChallengeError::Malformed(cursor.at));
        }
        cursor.skip_separators();
    }
    Ok(challenges)
}

impl Challenge {
    fn add(&mut self, name: String, value: String) -> Result<(), ChallengeError> {
        if self.parameter(&name).is_some() {
            return Err(ChallengeError::Repeated);
        }
        self.parameters.push((name, value));
        Ok(())
    }
}

struct Cursor<'text> {
    text: &'text str,
    at: usize,
}

impl<'text> Cursor<'text> {
    fn rest(&self) -> &'text str {
        &self.text[self.at..]
    }

    fn is_at_end(&self) -> bool {
        self.at == self.text.len()
    }

    fn skip_while(&mut self, fits: impl Fn(char) -> bool) -> &'text str {
        let rest = self.rest();
        let length = rest.find(|letter| !fits(letter)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn skip_spaces(&mut self) {
        self.skip_while(is_space);
    }

    /// Spaces and commas; a list may have empty elements.
    fn skip_separators(&mut self) {
        self.skip_while(|letter| is_space(letter) || letter == ',');
    }

    fn token(&mut self) -> Option<&'text str> {
        Some(self.skip_while(is_token)).filter(|token| !token.is_empty())
    }

    /// The value behind an `=`; `None`, and nothing skipped, when there is none.
    fn value(&mut self) -> Result<Option<String>, ChallengeError> {
        let before = self.at;
        self.skip_spaces();
        if !self.rest().starts_with('=') {
            self.at = before;
            return Ok(None);
        }
        self.at += 1;
        self.skip_spaces();
        if self.rest().starts_with('"') {
            return self.quoted().map(Some);
        }
        self.token().map(|token| Some(token.to_owned())).ok_or(ChallengeError::Malformed(self.at))
    }

    fn quoted(&mut self) -> Result<String, ChallengeError> {
        let start = self.at;
        let mut value = String::new();
        let mut letters = self.rest().char_indices().skip(1);
        while let Some((offset, letter)) = letters.next() {
            match letter {
                '"' => {
                    self.at = start + offset + 1;
                    return Ok(value);
                }
                '\\' => match letters.next() {
                    Some((_, escaped)) if !escaped.is_control() => value.push(escaped),
                    _ => break,
                },
                letter if letter.is_control() && letter != '\t' => break,
                letter => value.push(letter),
            }
        }
        Err(ChallengeError::Malformed(start))
    }

    /// What some schemes have instead of parameters: base64 behind a space. It says nothing to us.
    fn skip_token68(&mut self) -> bool {
        let before = self.at;
        self.skip_spaces();
        let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "-._~+/".contains(letter);
        let word = self.skip_while(is_letter);
        let padding = self.skip_while(|letter| letter == '=');
        let is_parameter = !padding.is_empty() && !matches!(self.rest().chars().next(), None | Some(',' | ' ' | '\t'));
        // A scheme behind a comma was not reached, and a word alone is the name of a parameter with spaces around `=`.
        let has_equals = padding.is_empty() && self.rest().trim_start_matches(is_space).starts_with('=');
        if word.is_empty() || is_parameter || has_equals || before == self.at {
            self.at = before;
            return false;
        }
        true
    }
}

fn is_space(letter: char) -> bool {
    letter == ' ' || letter == '\t'
}

fn is_token(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(letter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Challenge { scheme: scheme.to_owned(), parameters: parameters.iter().map(owned).collect() }
    }

    #[test]
    fn the_challenges_of_known_registries_are_understood() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#;
        let expected = challenge(
            "bearer",
            &[
                ("realm", "https://auth.docker.io/token"),
                ("service", "registry.docker.io"),
                ("scope", "repository:library/alpine:pull"),
            ],
        );
        assert_eq!(parse(hub).unwrap(), [expected]);
        let ecr = r#"Basic realm="https://1.dkr.ecr.eu-west-1.amazonaws.com/",service="ecr.amazonaws.com""#;
        assert_eq!(parse(ecr).unwrap()[0].scheme, "basic");
        let both = r#"Bearer realm="https://a/t", error="invalid_token", Basic realm=plain, Negotiate, Digest abc=="#;
        let schemes: Vec<_> = parse(both).unwrap().into_iter().map(|challenge| challenge.scheme).collect();
        assert_eq!(schemes, ["bearer", "basic", "negotiate", "digest"]);
        assert_eq!(parse("Negotiate dGVzdA==, Basic realm=\"x\\\"y\"").unwrap()[1].parameter("realm"), Some("x\"y"));
        assert_eq!(parse("BASIC REALM = \"x\"").unwrap(), [challenge("basic", &[("realm", "x")])]);
        assert_eq!(parse(" , ").unwrap(), []);
    }

    #[test]
    fn what_is_no_challenge_is_refused() {
        for text in ["realm=\"x\"", "Bearer realm=\"x", "Bearer realm=\"a\" b", "=", "Bearer realm=\"\u{1}\""] {
            assert!(matches!(parse(text), Err(ChallengeError::Malformed(_))), "{text:?}: {:?}", parse(text));
        }
        assert_eq!(parse("Bearer realm=a, realm=b"), Err(ChallengeError::Repeated));
        assert_eq!(parse(&"a".repeat(CHALLENGE_BYTES_MAX + 1)), Err(ChallengeError::Long));
        assert_eq!(parse(&"a, ".repeat(100)), Err(ChallengeError::Long));
    }

    fn written(challenges: &[Challenge]) -> String {
        let quoted = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"");
        let one = |challenge: &Challenge| {
            let parameters: Vec<_> =
                challenge.parameters.iter().map(|(name, value)| format!("{name}=\"{}\"", quoted(value))).collect();
            format!("{} {}", challenge.scheme, parameters.join(", "))
        };
        challenges.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read_back(
            schemes in proptest::collection::vec(("[a-z]{1,8}", proptest::collection::btree_map("[a-z_]{1,8}", "[ -~]{0,20}", 1..5)), 1..4),
        ) {
            let challenges: Vec<_> = schemes.into_iter().map(|(scheme, parameters)| {
                Challenge { scheme, parameters: parameters.into_iter().collect() }
            }).collect();
            prop_assert_eq!(parse(&written(&challenges)).unwrap(), challenges);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}|[a-z=\", \\\\]{0,40}") {
            let _ = parse(&text);
        }
    }
}
