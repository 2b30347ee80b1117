//! Patterns in which `*` stands for any text, also none, and `?` for one character. Nothing else is special.

/// Whether the whole text has the form of the pattern. Takes time proportional to the product of their lengths.
pub(crate) fn is_match(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut star) = (0, None);
    let mut position = 0;
    while position < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, position));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || *wanted == text[position] => {
                at += 1;
                position += 1;
            }
            // What came since the last star does not fit: let the star stand for one character more.
            _ => match star {
                Some((star_at, star_position)) => {
                    star = Some((star_at, star_position + 1));
                    at = star_at + 1;
                    position = star_position + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use super::is_match;

    #[test]
    fn a_star_stands_for_any_text_and_the_rest_for_itself() {
        assert!(is_match("*", ""));
        assert!(is_match("docker.io/library/*", "docker.io/library/busybox:1.36"));
        assert!(is_match("*:1.?6", "docker.io/library/busybox:1.36"));
        assert!(is_match("a*b*c", "a-b-b-c"));
        assert!(!is_match("a*b*c", "a-b-b-"));
        assert!(!is_match("LD_*", "ld_preload"));
        assert!(!is_match("docker.io/library/*", "evil.io/docker.io/library/x"));
        assert!(!is_match("", "a"));
    }
}
