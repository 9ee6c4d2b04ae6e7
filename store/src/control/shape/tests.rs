use super::{Described, Shape};
use crate::control::command::{BlockExportAdd, DeviceSuspend, TransactionAction};
use crate::control::job::JobInfo;

fn names(members: &[super::Member]) -> Vec<(&str, bool)> {
    members.iter().map(|member| (member.name.as_str(), member.optional)).collect()
}

#[test]
fn a_record_names_its_members_in_kebab_case_and_knows_what_may_be_left_out() {
    let Shape::Record { name, members } = DeviceSuspend::shape() else { panic!("a record") };
    assert_eq!(name, "DeviceSuspend");
    assert_eq!(names(&members), [("name", false), ("noflush", true), ("skip-lockfs", true)]);
}

#[test]
fn a_member_takes_the_name_it_is_given() {
    let Shape::Record { members, .. } = JobInfo::shape() else { panic!("a record") };
    assert_eq!(members[1].name, "type");
}

#[test]
fn a_flat_union_brings_its_tag_into_the_record() {
    let Shape::Union { base, tag, variants, .. } = BlockExportAdd::shape() else {
        panic!("a union")
    };
    assert_eq!(tag, "type");
    assert_eq!(
        names(&base),
        [
            ("id", false),
            ("node-name", false),
            ("writable", true),
            ("writethrough", true),
            ("fixed-iothread", true),
            ("type", false),
        ]
    );
    let (case, Shape::Record { members, .. }) = &variants[0] else { panic!("a record") };
    assert_eq!(*case, "vhost-user-blk");
    assert_eq!(
        names(members),
        [("addr", false), ("num-queues", true), ("logical-block-size", true)]
    );
}

#[test]
fn a_union_with_content_wraps_its_variants() {
    let Shape::Union { variants, .. } = TransactionAction::shape() else { panic!("a union") };
    let (_, Shape::Record { members, .. }) = &variants[1] else { panic!("a record") };
    assert_eq!(names(members), [("data", false)]);
}

#[test]
fn integers_carry_their_bounds() {
    assert_eq!(u16::shape(), Shape::Integer { min: 0, max: 65535 });
    assert_eq!(i64::shape(), Shape::Integer { min: i64::MIN, max: i64::MAX as u64 });
}
