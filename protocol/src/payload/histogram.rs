//! Histogram buckets for durations.
//!
//! The buckets are log-linear: each power of two is divided into [`SUB_BUCKETS`] equal parts. One
//! table of fixed size covers all 64-bit values, and a bucket's floor is at most 1/8 below any
//! value in it. Values below [`SUB_BUCKETS`] have a bucket each.

/// Number of buckets for each power of two.
pub const SUB_BUCKETS: usize = 8;

const SUB_BITS: u32 = SUB_BUCKETS.ilog2();

/// Number of buckets that cover all 64-bit values.
pub const BUCKETS: usize = (64 - SUB_BITS as usize) * SUB_BUCKETS + SUB_BUCKETS;

/// Returns the index of the bucket that holds `value`.
#[expect(clippy::cast_possible_truncation, reason = "both casts are of values below SUB_BUCKETS")]
pub const fn bucket_of(value: u64) -> usize {
    if value < SUB_BUCKETS as u64 {
        return value as usize;
    }
    let octave = value.ilog2() - SUB_BITS;
    let part = ((value >> octave) & (SUB_BUCKETS as u64 - 1)) as usize;
    (octave as usize + 1) * SUB_BUCKETS + part
}

/// Returns the smallest value of `bucket`, or `None` from [`BUCKETS`] on.
pub const fn bucket_floor(bucket: usize) -> Option<u64> {
    if bucket < SUB_BUCKETS {
        return Some(bucket as u64);
    }
    if bucket >= BUCKETS {
        return None;
    }
    let octave = bucket / SUB_BUCKETS - 1;
    let part = (bucket % SUB_BUCKETS) as u64;
    Some((SUB_BUCKETS as u64 + part) << octave)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floor_of_a_value_s_bucket_is_at_most_an_eighth_below_it() {
        for value in (0..5000).chain((6..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 12345])) {
            let floor = bucket_floor(bucket_of(value)).unwrap();
            assert!(floor <= value && value - floor <= value / 8, "{value}: {floor}");
        }
    }

    #[test]
    fn buckets_are_contiguous_and_end_with_the_largest_value() {
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(bucket_floor(bucket).unwrap()), bucket);
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket_floor(BUCKETS), None);
    }
}
