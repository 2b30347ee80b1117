//! Who takes how much: an account of things that several owners share, as plain set algebra. It knows nothing of
//! images; whatever has a name and a size can be counted.

use std::collections::{BTreeMap, BTreeSet};

/// What one owner has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Bytes of all that it has.
    pub total_bytes: u64,
    /// Bytes of what somebody else has as well.
    pub shared_bytes: u64,
    /// Bytes of what nobody else has.
    pub unique_bytes: u64,
}

/// What everybody has, each thing counted once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// How many things there are.
    pub count: usize,
    /// Bytes of all of them.
    pub total_bytes: u64,
    /// Bytes of those with several owners.
    pub shared_bytes: u64,
    /// What each owner has, in the order in which they came.
    pub shares: Vec<Share>,
}

/// Takes stock. An owner that has a thing twice has it once.
pub(super) fn account<K: Ord>(owners: &[BTreeMap<K, u64>]) -> Account {
    let mut all: BTreeMap<&K, (u64, usize)> = BTreeMap::new();
    for (thing, bytes) in owners.iter().flatten() {
        all.entry(thing).or_insert((*bytes, 0)).1 += 1;
    }
    let share = |things: &BTreeMap<K, u64>| {
        let mut share = Share::default();
        for thing in things.keys() {
            let (bytes, count) = all[thing];
            share.total_bytes += bytes;
            *(if count > 1 { &mut share.shared_bytes } else { &mut share.unique_bytes }) += bytes;
        }
        share
    };
    Account {
        count: all.len(),
        total_bytes: all.values().map(|(bytes, _)| bytes).sum(),
        shared_bytes: all.values().filter(|(_, count)| *count > 1).map(|(bytes, _)| bytes).sum(),
        shares: owners.iter().map(share).collect(),
    }
}

/// What nobody has any more when some owners go and others stay: the things of the first without those of the second.
pub(super) fn freed<'a, K: Ord + Clone + 'a>(
    going: impl IntoIterator<Item = &'a BTreeMap<K, u64>>,
    staying: impl IntoIterator<Item = &'a BTreeMap<K, u64>>,
) -> BTreeMap<K, u64> {
    let kept: BTreeSet<&K> = staying.into_iter().flat_map(BTreeMap::keys).collect();
    let gone = going.into_iter().flatten().filter(|(thing, _)| !kept.contains(thing));
    gone.map(|(thing, bytes)| (thing.clone(), *bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Owners of things 0 to 9, each of which has the same size wherever it is.
    fn owners() -> impl Strategy<Value = Vec<BTreeMap<u8, u64>>> {
        let owner = proptest::collection::btree_set(0u8..10, 0..6);
        let sized = |set: BTreeSet<u8>| set.into_iter().map(|thing| (thing, 1 << thing)).collect();
        proptest::collection::vec(owner.prop_map(sized), 0..6)
    }

    proptest! {
        #[test]
        fn shared_and_unique_add_up(owners in owners()) {
            let account = account(&owners);
            let union: BTreeMap<u8, u64> = owners.iter().flatten().map(|(thing, bytes)| (*thing, *bytes)).collect();
            prop_assert_eq!((account.count, account.total_bytes), (union.len(), union.values().sum()));
            let unique: u64 = account.shares.iter().map(|share| share.unique_bytes).sum();
            prop_assert_eq!(unique + account.shared_bytes, account.total_bytes);
            for (share, owner) in account.shares.iter().zip(&owners) {
                prop_assert_eq!(share.total_bytes, owner.values().sum::<u64>());
                prop_assert_eq!(share.shared_bytes + share.unique_bytes, share.total_bytes);
            }
        }

        #[test]
        fn what_is_freed_is_the_difference_before_and_after(owners in owners(), going in any::<u8>()) {
            let goes = |at: &usize| going >> (at % 8) & 1 == 1;
            let (leaving, staying): (Vec<_>, Vec<_>) = owners.iter().enumerate().partition(|(at, _)| goes(at));
            let staying: Vec<BTreeMap<u8, u64>> = staying.into_iter().map(|(_, owner)| owner.clone()).collect();
            let freed: u64 = freed(leaving.into_iter().map(|(_, owner)| owner), &staying).values().sum();
            prop_assert_eq!(account(&owners).total_bytes - account(&staying).total_bytes, freed);
        }

        #[test]
        fn one_owner_alone_shares_nothing_and_frees_its_own(owners in owners()) {
            for (at, owner) in owners.iter().enumerate() {
                let others = owners.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, other)| other);
                let freed: u64 = freed([owner], others).values().sum();
                prop_assert_eq!(freed, account(&owners).shares[at].unique_bytes);
            }
        }
    }
}
