//! Files with holes: the list of their extents, checked before any of them is used.

/// A run of stored bytes in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u64,
}

/// Most extents of one file.
pub(super) const EXTENTS_MAX: usize = 256 * 1024;

/// Checks that extents ascend, do not overlap, end within `size` and hold exactly `stored` bytes, and drops empty ones.
pub(super) fn check(mut extents: Vec<Extent>, size: u64, stored: u64) -> Result<Vec<Extent>, &'static str> {
    if extents.len() > EXTENTS_MAX {
        return Err("its sparse map has too many parts");
    }
    let mut end_before = 0;
    let mut sum = 0_u64;
    for extent in &extents {
        let end = extent.offset.checked_add(extent.length).filter(|&end| end <= size);
        let end = end.ok_or("its sparse map goes past its end")?;
        if extent.offset < end_before {
            return Err("its sparse map overlaps or goes backwards");
        }
        end_before = end;
        sum += extent.length; // at most `size`, since extents do not overlap
    }
    if sum != stored {
        return Err("its sparse map does not fit the data that it stores");
    }
    extents.retain(|extent| extent.length > 0);
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_map_that_fits_is_accepted() {
        let extents = |pairs: &[(u64, u64)]| pairs.iter().map(|&(offset, length)| Extent { offset, length }).collect();
        assert_eq!(check(extents(&[(0, 5), (10, 5), (20, 0)]), 20, 10).unwrap().len(), 2);
        assert_eq!(check(extents(&[]), 20, 0).unwrap().len(), 0);
        assert!(check(extents(&[(0, 5), (4, 5)]), 20, 10).is_err());
        assert!(check(extents(&[(10, 5), (0, 5)]), 20, 10).is_err());
        assert!(check(extents(&[(16, 5)]), 20, 5).is_err());
        assert!(check(extents(&[(u64::MAX, 5)]), 20, 5).is_err());
        assert!(check(extents(&[(0, 5)]), 20, 6).is_err());
    }
}
