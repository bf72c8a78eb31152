//! Recording how attempts ended.

use std::time::Duration;

use onering::{
    domain::delivery::{AttemptKind, Status},
    store::{Finish, Finished, Leased, Settle},
};

use crate::support::{
    build::{DEFAULT, Ends as _},
    store::{Db, HOUR, Node},
};

contract![
    a_delivered_one_is_history,
    a_retry_charges_its_attempt,
    a_signature_too_old_charges_none,
    a_failed_one_is_dead_in_time,
    a_dead_one_is_kept,
    a_released_one_is_as_before,
    the_same_again_is_told_so,
    the_same_twice_in_one_batch,
    a_stale_token_beside_the_right_one,
    a_wrong_token_changes_nothing,
    an_unleased_row_is_not_finished,
    a_batch_settles_each_row,
    any_text_and_answer_can_be_recorded,
    attempts_are_kept_in_order,
    a_signature_too_old_is_an_attempt_kept,
    a_first_success_is_listed,
    an_expired_lease_that_nobody_took_still_counts,
];

const MINUTE: Duration = Duration::from_mins(1);

async fn leased(node: &Node) -> Leased {
    let sub = DEFAULT.sub();
    node.accept(&DEFAULT.event_to(sub)).await;
    node.claim_one(sub).await
}

// A1
async fn a_delivered_one_is_history(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    node.finish_now(&lease.delivered()).await;
    let found = node.delivery(lease.id).await;
    assert_eq!(found.status, Status::Delivered);
    assert_eq!(found.attempts, 1);
    assert_eq!(found.response_status, 200);
    assert_eq!(found.reason, "");
    assert_eq!(found.due_at, None);
    assert!(found.finished_at.is_some());
    assert_eq!(node.held().await, []);
    node.pass(HOUR).await;
    assert!(node.claim(lease.subscription, 1).await.is_empty());
}

// A1, A2
async fn a_retry_charges_its_attempt(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    node.finish_now(&lease.retried(MINUTE)).await;
    let found = node.delivery(lease.id).await;
    assert_eq!(found.status, Status::Retrying);
    assert_eq!(found.attempts, 1);
    assert_eq!(found.response_status, 503);
    assert_eq!(found.reason, "status_503");
    node.pass(HOUR).await;
    let again = node.claim_one(lease.subscription).await;
    assert_eq!((again.attempts, again.replays), (1, 0));
}

// S5
async fn a_signature_too_old_charges_none(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    node.finish_now(&lease.sign_again()).await;
    let again = node.claim_one(lease.subscription).await;
    assert_eq!((again.attempts, again.replays), (0, 1));
}

// A1, A2
async fn a_failed_one_is_dead_in_time(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    node.finish_now(&lease.failed(MINUTE)).await;
    let found = node.delivery(lease.id).await;
    assert_eq!(found.status, Status::Failed);
    assert_eq!(found.attempts, 1);
    assert_eq!(found.finished_at, None);
    node.pass(HOUR).await;
    let found = node.delivery(lease.id).await;
    assert_eq!(found.status, Status::Dead, "without a write");
    assert!(found.finished_at.is_some());
    assert!(node.claim(lease.subscription, 1).await.is_empty());
}

// A1, A3
async fn a_dead_one_is_kept(db: Db) {
    let node = db.node().await;
    for status in [Status::Dead, Status::ReplayExpired] {
        let lease = leased(&node).await;
        node.finish_now(&Finish {
            settle: Settle::Dead(status),
            ..lease.dead()
        })
        .await;
        let found = node.delivery(lease.id).await;
        assert_eq!(found.status, status);
        assert_eq!(found.reason, "status_400");
        assert_eq!(found.attempts, u16::from(status == Status::Dead));
        assert!(found.finished_at.is_some());
    }
}

// W1
async fn a_released_one_is_as_before(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    node.finish_now(&lease.retried(Duration::ZERO)).await;
    let before = node.delivery(lease.id).await;
    let lease = node.claim_one(lease.subscription).await;
    node.finish_now(&lease.released()).await;
    assert_eq!(node.delivery(lease.id).await, before);
    assert_eq!(node.held().await, []);
    assert_eq!(node.claim_one(lease.subscription).await.id, lease.id);
}

// W2: the same ack again, its answer was lost.
async fn the_same_again_is_told_so(db: Db) {
    let node = db.node().await;
    let ends: [fn(&Leased) -> Finish; 5] = [
        Leased::delivered,
        Leased::dead,
        |l| l.retried(Duration::ZERO),
        |l| l.failed(MINUTE),
        Leased::sign_again,
    ];
    for end in ends {
        let lease = leased(&node).await;
        let finish = end(&lease);
        node.finish_now(&finish).await;
        let after = node.delivery(lease.id).await;
        assert_eq!(
            node.finish(&finish).await,
            Finished::Before,
            "{:?}",
            finish.settle
        );
        assert_eq!(node.delivery(lease.id).await, after, "{:?}", finish.settle);
        node.retry_by_hand(lease.id).await.unwrap();
        node.claim(lease.subscription, 1).await;
        assert_eq!(node.finish(&finish).await, Finished::Before, "leased again");
    }
}

// W2
async fn the_same_twice_in_one_batch(db: Db) {
    let node = db.node().await;
    let ends: [fn(&Leased) -> Finish; 3] = [Leased::delivered, Leased::dead, |l| {
        l.retried(Duration::ZERO)
    }];
    for end in ends {
        let lease = leased(&node).await;
        let finish = end(&lease);
        let answers = node.store.finish(&[finish.clone(), finish]).await.unwrap();
        assert_eq!(answers, [Finished::Now, Finished::Before]);
        assert_eq!(node.delivery(lease.id).await.attempts, 1);
        assert_eq!(node.attempts(lease.id).await.unwrap().len(), 1);
    }
}

// W2
async fn a_stale_token_beside_the_right_one(db: Db) {
    let node = db.node().await;
    let old = leased(&node).await;
    node.finish_now(&old.released()).await;
    let lease = node.claim_one(old.subscription).await;
    let batch = [old.dead(), lease.delivered()];
    let answers = node.store.finish(&batch).await.unwrap();
    assert_eq!(answers, [Finished::Stale, Finished::Now]);
    assert_eq!(node.status(lease.id).await, Status::Delivered);
}

// W2: the token is a fence.
async fn a_wrong_token_changes_nothing(db: Db) {
    let node = db.node().await;
    let old = leased(&node).await;
    node.finish_now(&old.released()).await;
    let lease = node.claim_one(old.subscription).await;
    let held = node.held().await;
    for finish in [
        old.delivered(),
        old.dead(),
        old.retried(MINUTE),
        old.failed(MINUTE),
        old.sign_again(),
        old.released(),
    ] {
        assert_eq!(
            node.finish(&finish).await,
            Finished::Stale,
            "{:?}",
            finish.settle
        );
        assert_eq!(node.held().await, held);
    }
    assert!(node.attempts(lease.id).await.unwrap().is_empty());
    node.finish_now(&lease.delivered()).await;
}

// W2
async fn an_unleased_row_is_not_finished(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let id = node.accept(&DEFAULT.event_to(sub)).await[0];
    let lease = node.claim_one(sub).await;
    node.finish_now(&lease.released()).await;
    for token in 0..lease.token + 2 {
        let guess = Finish {
            token,
            ..lease.delivered()
        };
        assert_eq!(node.finish(&guess).await, Finished::Stale, "token {token}");
    }
    assert_eq!(node.status(id).await, Status::Pending);
}

// N3
async fn a_batch_settles_each_row(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    for _ in 0..5 {
        node.accept(&DEFAULT.event_to(sub)).await;
    }
    let l = node.claim(sub, 5).await;
    let unknown = Finish {
        id: onering::domain::id::DeliveryId::of(l[0].event),
        ..l[0].delivered()
    };
    let batch = [
        l[4].delivered(),
        l[0].dead(),
        unknown,
        l[3].retried(MINUTE),
        l[1].failed(MINUTE),
        l[2].released(),
    ];
    let answers = node.store.finish(&batch).await.unwrap();
    let mut expected = [Finished::Now; 6];
    expected[2] = Finished::Stale;
    assert_eq!(answers, expected);
    let mut states = Vec::new();
    for lease in &l {
        states.push(node.status(lease.id).await);
    }
    assert_eq!(
        states,
        [
            Status::Dead,
            Status::Failed,
            Status::Pending,
            Status::Retrying,
            Status::Delivered
        ]
    );
    assert_eq!(node.store.finish(&[]).await.unwrap(), []);
}

// A4: a receiver's answer and a worker's texts are anything.
async fn any_text_and_answer_can_be_recorded(db: Db) {
    let node = db.node().await;
    let ends: [fn(&Leased) -> Finish; 3] = [Leased::delivered, Leased::dead, |l| {
        l.retried(Duration::ZERO)
    }];
    for end in ends {
        for response in [vec![], vec![0], b"\xff\0\xfe".to_vec(), vec![b'x'; 4096]] {
            let (one, two) = (leased(&node).await, leased(&node).await);
            let mut odd = end(&one);
            "nul\0reason".clone_into(&mut odd.reason);
            let attempt = odd.attempt.as_mut().unwrap();
            attempt.response.clone_from(&response);
            "nul\0error".clone_into(&mut attempt.error);
            "nul\0worker".clone_into(&mut attempt.worker);
            let answers = node.store.finish(&[odd, two.delivered()]).await.unwrap();
            assert_eq!(answers, [Finished::Now; 2]);
            assert_eq!(node.attempts(one.id).await.unwrap()[0].response, response);
            assert_eq!(node.status(two.id).await, Status::Delivered);
        }
    }
}

// A4
async fn attempts_are_kept_in_order(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    node.finish_now(&lease.retried(Duration::ZERO)).await;
    assert_eq!(node.attempts(lease.id).await.unwrap().len(), 1);
    node.pass(HOUR).await;
    let lease = node.claim_one(lease.subscription).await;
    node.finish_now(&lease.failed(MINUTE)).await;
    node.retry_by_hand(lease.id).await.unwrap();
    node.pass(HOUR).await;
    let lease = node.claim_one(lease.subscription).await;
    node.finish_now(&lease.delivered()).await;

    let kept = node.attempts(lease.id).await.unwrap();
    let what: Vec<_> = kept
        .iter()
        .map(|a| (a.number, a.kind, a.response_status))
        .collect();
    assert_eq!(
        what,
        [
            (1, AttemptKind::Retryable, 503),
            (2, AttemptKind::Retryable, 503),
            (3, AttemptKind::Delivered, 200),
        ]
    );
    assert!(kept.is_sorted_by_key(|a| a.started_at));
    assert!(kept[2].started_at - kept[0].started_at >= 2 * HOUR);
    for attempt in &kept {
        assert_eq!(attempt.took, 1500);
        assert_eq!(attempt.worker, "worker-1");
        assert_eq!(attempt.response, b"answer");
    }
    assert_eq!(kept[0].error, "refused");
    assert_eq!(node.delivery(lease.id).await.attempts, 3);
}

// A4, S5
async fn a_signature_too_old_is_an_attempt_kept(db: Db) {
    let node = db.node().await;
    for number in [1, 2] {
        let lease = leased(&node).await;
        node.finish_now(&lease.sign_again()).await;
        let lease = node.claim_one(lease.subscription).await;
        let mut end = lease.delivered();
        end.attempt.as_mut().unwrap().number = number;
        node.finish_now(&end).await;
        let kept = node.attempts(lease.id).await.unwrap();
        let kinds: Vec<_> = kept.iter().map(|a| a.kind).collect();
        assert_eq!(
            kinds,
            [AttemptKind::ReplayExpired, AttemptKind::Delivered],
            "numbered {number}"
        );
    }
}

// A4
async fn a_first_success_is_listed(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    assert!(node.attempts(lease.id).await.unwrap().is_empty());
    let end = lease.delivered();
    assert!(!end.keeps_attempt());
    node.finish_now(&end).await;
    let kept = node.attempts(lease.id).await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].number, 1);
    assert_eq!(kept[0].kind, AttemptKind::Delivered);
    assert_eq!(kept[0].took, 1500);
    assert_eq!(kept[0].response_status, 200);
    assert_eq!(kept[0].response, b"answer");
    assert_eq!(kept[0].worker, "worker-1");
    let finished = node.delivery(lease.id).await.finished_at.unwrap();
    assert_eq!(kept[0].started_at, finished - 1500);
}

// N2: safety comes from the token alone.
async fn an_expired_lease_that_nobody_took_still_counts(db: Db) {
    let store = db.open().await;
    let node = Node::idle(&store, MINUTE).await;
    node.take_all().await;
    let lease = leased(&node).await;
    node.pass(HOUR).await;
    node.finish_now(&lease.delivered()).await;
}
