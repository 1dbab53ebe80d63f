//! Division of a whole number in proportion, by largest remainder.
//!
//! Largest remainder and not Webster: every part is its exact quota rounded down or up, which a
//! person can check by hand, and a small change of the input moves a part by little more than itself.

use std::cmp::Reverse;

/// Splits `total` in proportion to `shares`; the parts add up to `total`, or are all 0 when the
/// shares are. A share of 0 gets 0. Ties go to the earlier position.
///
/// Exact while `total · share` fits into 128 bits: shares up to 2^96.
pub(crate) fn apportion(total: u32, shares: &[u128]) -> Vec<u32> {
    let sum: u128 = shares.iter().sum();
    if sum == 0 {
        return vec![0; shares.len()];
    }
    let quota = |share: u128| {
        let exact = u128::from(total) * share;
        (u32::try_from(exact / sum).expect("a part is at most the total"), exact % sum)
    };
    let mut parts: Vec<u32> = shares.iter().map(|share| quota(*share).0).collect();
    let given: u32 = parts.iter().sum();
    // The remainders add up to a multiple of the sum, each below it: fewer units are left than there
    // are remainders above zero, so a share of 0 never gets one.
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by_key(|at| (Reverse(quota(shares[*at]).1), *at));
    let left = usize::try_from(total - given).unwrap_or(usize::MAX);
    for at in order.into_iter().take(left) {
        parts[at] += 1;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_quotas_rounded_down_or_up() {
        assert_eq!(apportion(10, &[1, 1, 1]), [4, 3, 3]);
        assert_eq!(apportion(10, &[2, 1]), [7, 3]);
        assert_eq!(apportion(10_000, &[80, 20]), [8_000, 2_000]);
    }

    #[test]
    fn ties_go_to_the_earlier_position() {
        assert_eq!(apportion(3, &[1, 1]), [2, 1]);
        assert_eq!(apportion(1, &[0, 5, 5]), [0, 1, 0]);
    }

    #[test]
    fn zero_gets_zero() {
        assert_eq!(apportion(7, &[0, 1, 0]), [0, 7, 0]);
        assert_eq!(apportion(7, &[0, 0]), [0, 0]);
        assert_eq!(apportion(0, &[3, 4]), [0, 0]);
        assert!(apportion(7, &[]).is_empty());
    }
}
