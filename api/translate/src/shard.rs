//! Lists that Kubernetes bounds (16 entries of a grant, 16 rules of a route), spread over objects.
//!
//! Items are told apart by the bits of a hash of their key; a shard that is full is split by the next
//! bit and its name grows by that bit. So adding an item changes one shard or replaces one by two, and
//! nobody else's item ever moves. Cutting a sorted list into pieces of 16 would shift every item
//! behind a new one from object to object, and each would be without its grant in between.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

/// Splits items into shards of at most `max` (at least 1). The name of a shard is a string of `0` and `1`, empty when
/// there is one shard. Order within a shard is that of the items.
pub fn shard<T, K>(items: Vec<T>, max: usize, key: K) -> BTreeMap<String, Vec<T>>
where
    K: Fn(&T) -> String,
{
    let hashed = items.into_iter().map(|item| (hash(&key(&item)), item)).collect();
    let mut shards = BTreeMap::new();
    split(hashed, max.max(1), String::new(), &mut shards);
    shards
}

type Hash = [u8; 32];

fn hash(key: &str) -> Hash {
    Sha256::digest(key.as_bytes()).into()
}

fn split<T>(
    items: Vec<(Hash, T)>,
    max: usize,
    name: String,
    shards: &mut BTreeMap<String, Vec<T>>,
) {
    // Names are bounded by the bits of the hash; only equal keys ever get there.
    if items.len() <= max || name.len() == 256 {
        if !items.is_empty() {
            shards.insert(name, items.into_iter().map(|(_, item)| item).collect());
        }
        return;
    }
    let bit = name.len();
    let is_one = |hash: &Hash| hash[bit / 8] & (0x80 >> (bit % 8)) != 0;
    let (ones, zeros) = items.into_iter().partition(|(hash, _)| is_one(hash));
    split(zeros, max, format!("{name}0"), shards);
    split(ones, max, format!("{name}1"), shards);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(keys: &[u16]) -> BTreeMap<String, Vec<u16>> {
        shard(keys.to_vec(), 16, u16::to_string)
    }

    #[test]
    fn few_items_are_one_shard_without_a_name() {
        assert_eq!(of(&[1, 2]), [(String::new(), vec![1, 2])].into());
        assert!(of(&[]).is_empty());
    }

    #[test]
    fn equal_keys_end_in_one_shard_instead_of_an_endless_split() {
        assert_eq!(of(&[7; 40]).len(), 1);
    }

    proptest! {
        #[test]
        fn shards_are_bounded_and_lose_nothing(keys in proptest::collection::btree_set(any::<u16>(), 0..200)) {
            let keys: Vec<u16> = keys.into_iter().collect();
            let shards = of(&keys);
            prop_assert!(shards.values().all(|items| (1..=16).contains(&items.len())));
            let mut all: Vec<u16> = shards.into_values().flatten().collect();
            all.sort_unstable();
            prop_assert_eq!(all, keys);
        }

        #[test]
        fn an_item_stays_in_its_shard_or_moves_to_one_that_is_new(
            keys in proptest::collection::btree_set(any::<u16>(), 0..100),
            more in any::<u16>(),
        ) {
            let before = of(&keys.iter().copied().collect::<Vec<_>>());
            let mut keys = keys;
            keys.insert(more);
            let after = of(&keys.into_iter().collect::<Vec<_>>());
            for (name, items) in &after {
                let Some(old) = before.get(name) else { continue };
                let arrived = items.iter().filter(|item| !old.contains(item));
                prop_assert!(arrived.into_iter().all(|item| *item == more));
            }
        }
    }
}
