//! What somebody may have meant who mistyped a word.

/// Most changes between two words that are taken for the same.
const CHANGES_MAX: usize = 2;
/// Most candidates that are looked at.
const CANDIDATES_MAX: usize = 256;
/// Longest word that is looked at.
const WORD_BYTES_MAX: usize = 64;

/// The candidate that differs least from `word`, when it differs little.
pub(super) fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = CHANGES_MAX.min(word.len().saturating_sub(1) / 2 + 1);
    let near =
        candidates.into_iter().take(CANDIDATES_MAX).filter(|candidate| *candidate != word).filter_map(|candidate| {
            let changes = distance(&word.to_ascii_lowercase(), &candidate.to_ascii_lowercase())?;
            (changes <= allowed).then_some((changes, candidate))
        });
    near.min().map(|(_, candidate)| candidate)
}

/// How many letters must be put in, taken out, changed or swapped with their neighbour.
fn distance(left: &str, right: &str) -> Option<usize> {
    if left.len().max(right.len()) > WORD_BYTES_MAX {
        return None;
    }
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=right.len()).collect()];
    for (row, l) in left.iter().enumerate() {
        let mut next = vec![row + 1];
        for (column, r) in right.iter().enumerate() {
            let last = &rows[row];
            let mut least = (last[column] + usize::from(l != r)).min(last[column + 1] + 1).min(next[column] + 1);
            let is_swap = row > 0 && column > 0 && *l == right[column - 1] && left[row - 1] == *r;
            if is_swap {
                least = least.min(rows[row - 1][column - 1] + 1);
            }
            next.push(least);
        }
        rows.push(next);
    }
    rows.last().and_then(|row| row.last()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_understood_and_another_word_is_not() {
        let keywords = ["FROM", "RUN", "COPY", "ENV"];
        assert_eq!(closest("FORM", keywords), Some("FROM"));
        assert_eq!(closest("RNU", keywords), Some("RUN"));
        assert_eq!(closest("CPOY", keywords), Some("COPY"));
        assert_eq!(closest("ENVIRONMENT", keywords), None);
        assert_eq!(closest("", keywords), None);
        assert_eq!(closest(&"x".repeat(10_000), keywords), None);
    }
}
