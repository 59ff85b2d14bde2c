/* A descendant of a holder gets the port that is held for the same service; nobody else does. */
#include "actors.h"

#include <stdatomic.h>
#include <sys/mman.h>

#include "core/ledger_state.h"
#include "core/process.h"

/* Keys of names. */
enum { WEB = 7, DATABASE = 8 };

/* The answer's: does an ancestor take part? */
static actor_answer do_ask_for_kin(const actor_order *order)
{
    (void)order;
    pm_status status = pm_ledger_check();
    return (actor_answer){.status = (int)status, .number = pm_ledger_has_kin()};
}

static actor_answer borrow(uint16_t first, uint16_t last, uint64_t key)
{
    pm_name name = {.key = key, .label = "service"};
    uint16_t port = 0;
    pm_status status = pm_ledger_check();

    if (status == PM_OK) {
        status = pm_ledger_has_kin() ? pm_ledger_lend(me, first, last, &name, &port) : PM_HELD;
    }
    return (actor_answer){.status = (int)status, .number = port};
}

/* `number` is the key. */
static actor_answer do_borrow(const actor_order *order)
{
    return borrow(order->port, order->port, order->number);
}

/* The first of port..number that is held for WEB. */
static actor_answer do_borrow_of_range(const actor_order *order)
{
    return borrow(order->port, (uint16_t)order->number, WEB);
}

/* The pid that is listed for the port. */
static actor_answer do_list(const actor_order *order)
{
    pm_held_list list;
    actor_answer answer = {.status = (int)pm_ledger_check()};

    if (answer.status == PM_OK) {
        answer.status = (int)pm_ledger_list(order->port, order->port, &list);
        answer.number = list.count ? list.items[0].pid : 0;
        pm_held_list_free(&list);
    }
    return answer;
}

static void assert_listed(unsigned by, unsigned holder)
{
    assert_int_equal(ask(by, do_list, PORT, 0).number, actors[holder].pid);
}

static pm_status borrowed_by(unsigned number)
{
    actor_answer answer = ask(number, do_borrow, PORT, WEB);
    if (answer.status == PM_OK) {
        assert_int_equal(answer.number, PORT);
    }
    return (pm_status)answer.status;
}

static pm_status claimed_by(unsigned number)
{
    return (pm_status)ask(number, do_claim, PORT, WEB).status;
}

/* Nobody who is no kin gets the port, in whichever way. */
static void assert_refused(unsigned stranger)
{
    assert_status(status_of(stranger, do_look), PM_HELD);
    assert_status(claimed_by(stranger), PM_HELD);
    assert_status(borrowed_by(stranger), PM_HELD);
}

/* A family on the stage: a stranger, an owner who has claimed PORT for WEB, its child, and the
 * child's child. */
enum { STRANGER, OWNER, CHILD, GRANDCHILD, OTHER_CHILD, OTHER_STRANGER };

static void start_family(void)
{
    start(STRANGER);
    start(OWNER);
    assert_status(claimed_by(OWNER), PM_OK);
    spawn(OWNER, CHILD);
    spawn(OWNER, OTHER_CHILD);
    spawn(CHILD, GRANDCHILD);
}

/* ---- who is lent what ----------------------------------------------------------------------- */

static void lend_to_child(void)
{
    start_family();
    assert_true(ask(CHILD, do_ask_for_kin, 0, 0).number);
    assert_status(borrowed_by(CHILD), PM_OK);
    assert_status(borrowed_by(CHILD), PM_HELD); /* it has it */
    actor_answer looked = ask(CHILD, do_look, PORT, 0);
    assert_status((pm_status)looked.status, PM_HELD);
    assert_int_equal(looked.number, ask(CHILD, do_name_yourself, 0, 0).number);
    looked = ask(OWNER, do_look, PORT, 0);
    assert_int_equal(looked.number, ask(OWNER, do_name_yourself, 0, 0).number);
    assert_refused(STRANGER);
    assert_status(claimed_by(OWNER), PM_HELD);
    assert_listed(STRANGER, OWNER);
    assert_listed(OWNER, OWNER);
    assert_listed(CHILD, CHILD);
    kill_actor(OWNER);
    assert_listed(STRANGER, CHILD);
}

static void test_a_child_is_lent_its_parents_port(void **state)
{
    (void)state;
    scene(lend_to_child);
}

static void lend_to_none(void)
{
    start_family();
    assert_false(ask(STRANGER, do_ask_for_kin, 0, 0).number);
    assert_refused(STRANGER);
    assert_status((pm_status)ask(CHILD, do_borrow, PORT, DATABASE).status, PM_HELD);
    assert_status((pm_status)ask(CHILD, do_borrow, PORT, 0).status, PM_HELD);
    assert_status((pm_status)ask(CHILD, do_borrow, PORT + 1, WEB).status, PM_HELD);
    /* What the owner holds for no name is lent under none. */
    assert_status(status_at(OWNER, do_claim, PORT + 1), PM_OK);
    assert_status((pm_status)ask(CHILD, do_borrow, PORT + 1, WEB).status, PM_HELD);
    assert_status((pm_status)ask(CHILD, do_borrow, PORT + 1, 0).status, PM_HELD);
    /* A brother's is not lent, nor is a child's to its parent. */
    assert_status((pm_status)ask(CHILD, do_claim, PORT + 2, WEB).status, PM_OK);
    assert_status((pm_status)ask(OTHER_CHILD, do_borrow, PORT + 2, WEB).status, PM_HELD);
    assert_status((pm_status)ask(OWNER, do_borrow, PORT + 2, WEB).status, PM_HELD);
    assert_false(ask(OWNER, do_ask_for_kin, 0, 0).number);
}

static void test_others_and_other_names_are_lent_nothing(void **state)
{
    (void)state;
    scene(lend_to_none);
}

static void lend_of_range(void)
{
    start_family();
    assert_status((pm_status)ask(OWNER, do_claim, PORT + 5, WEB).status, PM_OK);
    assert_status((pm_status)ask(OWNER, do_claim, PORT - 5, DATABASE).status, PM_OK);
    assert_status((pm_status)ask(CHILD, do_borrow_of_range, 1, PORT - 1).status, PM_HELD);
    assert_status((pm_status)ask(CHILD, do_borrow_of_range, PORT + 6, UINT16_MAX).status, PM_HELD);
    actor_answer lent = ask(CHILD, do_borrow_of_range, 1, UINT16_MAX);
    assert_status((pm_status)lent.status, PM_OK);
    assert_int_equal(lent.number, PORT);
    lent = ask(CHILD, do_borrow_of_range, PORT, PORT + 5); /* passes over what it has */
    assert_status((pm_status)lent.status, PM_OK);
    assert_int_equal(lent.number, PORT + 5);
    assert_status((pm_status)ask(CHILD, do_borrow_of_range, 1, UINT16_MAX).status, PM_HELD);
}

static void test_the_first_port_of_a_range_is_lent(void **state)
{
    (void)state;
    scene(lend_of_range);
}

static void take_part_later(void)
{
    start(OWNER);
    spawn(OWNER, CHILD);
    assert_false(ask(CHILD, do_ask_for_kin, 0, 0).number);
    assert_status(borrowed_by(CHILD), PM_HELD);
    assert_status(claimed_by(OWNER), PM_OK);
    assert_true(ask(CHILD, do_ask_for_kin, 0, 0).number);
    assert_status(borrowed_by(CHILD), PM_OK);
}

static void test_an_ancestor_may_take_part_later(void **state)
{
    (void)state;
    scene(take_part_later);
}

/* ---- one heir at a time ---------------------------------------------------------------------- */

static void take_heirs_place(void)
{
    start_family();
    assert_status(borrowed_by(CHILD), PM_OK);
    assert_status(borrowed_by(OTHER_CHILD), PM_HELD); /* no descendant of the heir */
    assert_status(borrowed_by(GRANDCHILD), PM_OK);
    assert_status(borrowed_by(OTHER_CHILD), PM_HELD);
    assert_refused(STRANGER);
    /* Whose place was taken holds the port still, until it gives it back. */
    ask(CHILD, do_release, PORT, 0);
    kill_actor(OWNER);
    assert_refused(STRANGER);
    assert_status(status_of(CHILD, do_look), PM_HELD);
    kill_actor(GRANDCHILD);
    assert_status(claimed_by(STRANGER), PM_OK);
}

static void test_a_descendant_takes_the_heirs_place(void **state)
{
    (void)state;
    scene(take_heirs_place);
}

/* In each way that an owner, or an heir, can go. */
static actor_action go_by;

static void go(unsigned number)
{
    if (go_by) {
        ask(number, go_by, PORT, 0);
    } else {
        kill_actor(number);
    }
}

static void scene_in_each_way(void (*play)(void), void **state)
{
    static const actor_action ways[] = {do_release, do_withdraw, NULL};

    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        go_by = ways[i];
        scene(play);
        remove_folder(state);
        assert_int_equal(mkdir(folder, 0700), 0);
    }
}

/* Launcher, reloader and its child: the reloader is what remains, and lends the port again. */
static void remain_in_the_middle(void)
{
    start_family();
    assert_status(borrowed_by(CHILD), PM_OK);
    assert_status(borrowed_by(GRANDCHILD), PM_OK);
    go(OWNER);
    for (int i = 0; i < 3; i++) {
        assert_refused(STRANGER);
        kill_actor(GRANDCHILD);
        assert_refused(STRANGER);
        assert_refused(OTHER_CHILD);
        assert_listed(STRANGER, CHILD);
        spawn(CHILD, GRANDCHILD);
        assert_status((pm_status)ask(GRANDCHILD, do_borrow, PORT, DATABASE).status, PM_HELD);
        assert_status(borrowed_by(GRANDCHILD), PM_OK);
        assert_status(claimed_by(CHILD), PM_HELD); /* its own */
    }
    ask(GRANDCHILD, do_release, PORT, 0);
    assert_refused(STRANGER);
    go(CHILD);
    assert_status(claimed_by(GRANDCHILD), PM_OK);
    assert_refused(STRANGER);
}

static void test_who_lent_on_holds_the_port_still(void **state)
{
    scene_in_each_way(remain_in_the_middle, state);
}

/* The owner lives, its heir too, and the heir's heir is gone: no other child is lent the port. */
static void stay_beside_the_owner(void)
{
    start_family();
    assert_status(borrowed_by(CHILD), PM_OK);
    assert_status(borrowed_by(GRANDCHILD), PM_OK);
    go(GRANDCHILD);
    assert_refused(OTHER_CHILD);
    assert_refused(STRANGER);
    go(CHILD);
    assert_status(borrowed_by(OTHER_CHILD), PM_OK);
    assert_refused(STRANGER);
}

static void test_who_lent_on_is_the_heir_again(void **state)
{
    scene_in_each_way(stay_beside_the_owner, state);
}

/* There is room for so many generations; the next one gets a port of its own. */
static void descend(void)
{
    enum { LAST_HEIR = OWNER + PM_HEIRS_MAX };

    start(STRANGER);
    start(OWNER);
    assert_status(claimed_by(OWNER), PM_OK);
    for (unsigned i = OWNER + 1; i <= LAST_HEIR + 1; i++) {
        spawn(i - 1, i);
        assert_status(borrowed_by(i), i <= LAST_HEIR ? PM_OK : PM_HELD);
    }
    for (unsigned i = OWNER; i <= LAST_HEIR; i++) {
        assert_refused(STRANGER);
        kill_actor(i);
    }
    assert_status(claimed_by(LAST_HEIR + 1), PM_OK);
}

static void test_so_many_generations_share_a_port(void **state)
{
    (void)state;
    scene(descend);
}

static void skip_a_generation(void)
{
    start_family(); /* the child in between does not take part */
    assert_status(borrowed_by(GRANDCHILD), PM_OK);
    assert_status(borrowed_by(CHILD), PM_HELD); /* an ancestor of the heir's is not its heir */
    assert_status(borrowed_by(OTHER_CHILD), PM_HELD);
    ask(GRANDCHILD, do_release, PORT, 0);
    assert_status(borrowed_by(CHILD), PM_OK);
}

static void test_a_grandchild_is_lent_its_ancestors_port(void **state)
{
    (void)state;
    scene(skip_a_generation);
}

static void replace_heir(void)
{
    start_family();
    for (int i = 0; i < 5; i++) {
        assert_status(borrowed_by(CHILD), PM_OK);
        assert_status(borrowed_by(OTHER_CHILD), PM_HELD);
        kill_actor(CHILD);
        assert_status(borrowed_by(OTHER_CHILD), PM_OK);
        assert_refused(STRANGER);
        spawn(OWNER, CHILD);
        assert_status(borrowed_by(CHILD), PM_HELD);
        ask(OTHER_CHILD, do_release, PORT, 0);
        assert_refused(STRANGER);
    }
}

static void test_an_heir_that_died_or_gave_back_is_replaced(void **state)
{
    (void)state;
    scene(replace_heir);
}

/* ---- giving back, and death ------------------------------------------------------------------ */

static void outlive_owner(void)
{
    for (unsigned dies_first = 0; dies_first < 2; dies_first++) {
        start_family();
        assert_status(borrowed_by(CHILD), PM_OK);
        kill_actor(dies_first ? CHILD : OWNER);
        assert_refused(STRANGER);
        kill_actor(dies_first ? OWNER : CHILD);
        assert_status(status_of(STRANGER, do_look), PM_OK);
        actor_answer claimed = ask(STRANGER, do_claim_only, PORT, 0);
        assert_status((pm_status)claimed.status, PM_OK);
        assert_true(claimed.number); /* inherited from the dead */
        kill_actor(STRANGER);
        kill_actor(GRANDCHILD);
        kill_actor(OTHER_CHILD);
    }
}

static void test_the_port_is_free_when_owner_and_heir_are_dead(void **state)
{
    (void)state;
    scene(outlive_owner);
}

static void lend_from_dead_owner(void)
{
    start_family();
    assert_true(ask(CHILD, do_ask_for_kin, 0, 0).number);
    kill_actor(OWNER);
    assert_status(borrowed_by(CHILD), PM_HELD);
    assert_status(claimed_by(CHILD), PM_OK); /* it is free */
    assert_refused(STRANGER);
}

static void test_a_dead_owner_lends_nothing(void **state)
{
    (void)state;
    scene(lend_from_dead_owner);
}

static void lend_from_heir_of_dead_owner(void)
{
    start_family();
    assert_status(borrowed_by(CHILD), PM_OK);
    kill_actor(OWNER);
    assert_status(borrowed_by(OTHER_CHILD), PM_HELD);
    assert_status(borrowed_by(GRANDCHILD), PM_OK);
    assert_refused(STRANGER);
    kill_actor(CHILD);
    assert_refused(STRANGER);
    assert_refused(OTHER_CHILD);
    kill_actor(GRANDCHILD);
    assert_status(claimed_by(OTHER_CHILD), PM_OK);
}

static void test_the_heir_of_a_dead_owner_lends_on(void **state)
{
    (void)state;
    scene(lend_from_heir_of_dead_owner);
}

/* The heir holds on when its own heir is gone, and lends the port again. */
static void hold_on(void)
{
    start_family();
    assert_status(borrowed_by(CHILD), PM_OK);
    kill_actor(OWNER);
    for (int i = 0; i < 3; i++) {
        assert_status(borrowed_by(GRANDCHILD), PM_OK);
        assert_refused(STRANGER);
        if (i == 1) {
            ask(GRANDCHILD, do_release, PORT, 0);
        } else {
            kill_actor(GRANDCHILD);
            spawn(CHILD, GRANDCHILD);
        }
        assert_refused(STRANGER);
        assert_refused(OTHER_CHILD);
        assert_status((pm_status)ask(GRANDCHILD, do_borrow, PORT, DATABASE).status, PM_HELD);
    }
    assert_status(borrowed_by(GRANDCHILD), PM_OK);
    ask(CHILD, do_release, PORT, 0);
    assert_refused(STRANGER);
    assert_status(claimed_by(CHILD), PM_HELD);
    ask(GRANDCHILD, do_release, PORT, 0);
    assert_status((pm_status)ask(CHILD, do_claim, PORT, DATABASE).status, PM_OK);
    assert_status(borrowed_by(GRANDCHILD), PM_HELD);
    kill_actor(CHILD);
    assert_status(claimed_by(STRANGER), PM_OK);
}

static void test_the_heir_of_a_dead_owner_holds_on(void **state)
{
    (void)state;
    scene(hold_on);
}

static actor_action give_back_by;

static void give_back_as_owner(void)
{
    start_family();
    assert_status(borrowed_by(CHILD), PM_OK);
    ask(OWNER, give_back_by, PORT, 0);
    assert_refused(STRANGER);
    assert_refused(OTHER_CHILD);
    assert_status(claimed_by(OWNER), PM_HELD); /* it is the heir's now */
    assert_listed(STRANGER, CHILD);
    ask(CHILD, do_release, PORT, 0);
    assert_status(claimed_by(STRANGER), PM_OK);
    assert_status(claimed_by(OWNER), PM_HELD);
    assert_status(borrowed_by(CHILD), PM_HELD);
}

static void test_the_owners_release_leaves_the_heir_its_port(void **state)
{
    (void)state;
    give_back_by = do_release;
    scene(give_back_as_owner);
    give_back_by = do_withdraw;
    scene(give_back_as_owner);
}

static void give_back_as_heir(void)
{
    start_family();
    for (int i = 0; i < 5; i++) {
        assert_status(borrowed_by(CHILD), PM_OK);
        ask(CHILD, i % 2 ? do_release : do_withdraw, PORT, 0);
        assert_refused(STRANGER);
        assert_status(claimed_by(OWNER), PM_HELD);
    }
    ask(OWNER, do_release, PORT, 0);
    assert_status(borrowed_by(CHILD), PM_HELD);
    assert_status(claimed_by(STRANGER), PM_OK);
}

static void test_the_heirs_release_leaves_the_owner_its_port(void **state)
{
    (void)state;
    scene(give_back_as_heir);
}

static void change_name(void)
{
    start_family();
    ask(OWNER, do_release, PORT, 0);
    assert_status(borrowed_by(CHILD), PM_HELD); /* nobody holds it */
    assert_status((pm_status)ask(OWNER, do_claim, PORT, DATABASE).status, PM_OK);
    assert_status(borrowed_by(CHILD), PM_HELD);
    assert_status((pm_status)ask(OTHER_CHILD, do_borrow, PORT, DATABASE).status, PM_OK);
    ask(OTHER_CHILD, do_release, PORT, 0);
    ask(OWNER, do_release, PORT, 0);
    assert_status(claimed_by(OWNER), PM_OK);
    assert_status((pm_status)ask(CHILD, do_borrow, PORT, DATABASE).status, PM_HELD);
    assert_status(borrowed_by(CHILD), PM_OK);

    ask(CHILD, do_release, PORT, 0);
    assert_status(borrowed_by(OTHER_CHILD), PM_OK); /* it had it under the other name */
    ask(OTHER_CHILD, do_release, PORT, 0);
    ask(OWNER, do_release, PORT, 0);
    assert_status(status_of(OWNER, do_claim), PM_OK); /* for no name */
    assert_status(borrowed_by(CHILD), PM_HELD);
}

static void test_only_the_name_of_now_counts(void **state)
{
    (void)state;
    scene(change_name);
}

/* ---- records that lie ------------------------------------------------------------------------ */

/* Lets a slot of nobody's say that it is `process`'s, and that it has PORT for WEB. */
static void plant_owner(const pm_ledger_map *map, uint32_t number, const pm_process *process)
{
    pm_slot *slot = &map->slots[number];
    pm_half half = pm_half_of(number, 5);

    atomic_store(&slot->generation, 5);
    atomic_store(&slot->pid, process->pid);
    atomic_store(&slot->started, process->started);
    atomic_store(&map->entries[PORT].word, pm_word_of(half, 0));
    atomic_store(&map->entries[PORT].tag, pm_ledger_tag(WEB, half));
    atomic_fetch_add(&map->header->takings, 1);
}

static void recycle_pid(void)
{
    create_with_slots(31);
    pm_ledger_map map = mapped();
    pm_process parent = pm_process_self();

    start(CHILD);
    plant_owner(&map, 20, &parent); /* as it was when a process of that number died */
    assert_false(ask(CHILD, do_ask_for_kin, 0, 0).number);
    assert_status(borrowed_by(CHILD), PM_HELD);
    assert_status(claimed_by(CHILD), PM_OK);
    ask(CHILD, do_release, PORT, 0);

    /* A living one is an ancestor only if it started when the ancestor did. */
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 20, .l_len = 1};
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
    pm_process stranger = {.pid = parent.pid, .started = parent.started - 1};
    plant_owner(&map, 20, &stranger);
    assert_false(ask(CHILD, do_ask_for_kin, 0, 0).number);
    assert_refused(CHILD);
    plant_owner(&map, 20, &parent);
    assert_true(ask(CHILD, do_ask_for_kin, 0, 0).number);
    assert_status(borrowed_by(CHILD), PM_OK);
    ask(CHILD, do_release, PORT, 0);

    /* Known as an ancestor's already, and then another's. */
    atomic_store(&map.slots[20].started, stranger.started);
    assert_refused(CHILD);
    atomic_store(&map.slots[20].started, parent.started);
    atomic_store(&map.slots[20].generation, 6);
    assert_status(borrowed_by(CHILD), PM_HELD);
    close(fd);
    pm_ledger_file_unmap(&map);
}

static void test_a_recycled_pid_is_no_ancestor(void **state)
{
    (void)state;
    scene(recycle_pid);
}

/* Between the step that claims and the one that names, there is the tag of whoever held before. */
static void find_tag_of_dead(void)
{
    create_with_slots(2);
    pm_ledger_map map = mapped();
    _Atomic(uint64_t) *tag = &map.entries[PORT].tag;

    start(STRANGER);
    assert_status(claimed_by(STRANGER), PM_OK);
    uint64_t of_dead = atomic_load(tag);
    kill_actor(STRANGER);
    start(STRANGER); /* in the other slot, so that the owner gets the dead one's */
    assert_status(status_of(STRANGER, do_look), PM_OK);
    start(OWNER);
    assert_status((pm_status)ask(OWNER, do_claim, PORT, DATABASE).status, PM_OK);
    assert_int_equal(pm_owner_of(atomic_load(&map.entries[PORT].word)), pm_half_of(1, 2));
    kill_actor(STRANGER); /* the child needs a slot, too */
    spawn(OWNER, CHILD);
    assert_true(ask(CHILD, do_ask_for_kin, 0, 0).number);
    uint64_t of_owner = atomic_exchange(tag, of_dead);
    assert_int_not_equal(of_owner, of_dead);
    assert_status(borrowed_by(CHILD), PM_HELD);
    assert_status((pm_status)ask(CHILD, do_borrow, PORT, DATABASE).status, PM_HELD);
    atomic_store(tag, of_owner);
    assert_status(borrowed_by(CHILD), PM_HELD);
    assert_status((pm_status)ask(CHILD, do_borrow, PORT, DATABASE).status, PM_OK);
    pm_ledger_file_unmap(&map);
}

static void test_a_dead_owners_tag_says_nothing(void **state)
{
    (void)state;
    scene(find_tag_of_dead);
}

/* What the last claim left must be gone before the next one is there, or its name would be lent. */
static void claim_anew(void)
{
    start_family();
    pm_ledger_map map = mapped();
    uint64_t web = atomic_load(&map.entries[PORT].tag);
    ask(OWNER, do_release, PORT, 0);
    assert_int_equal(atomic_load(&map.entries[PORT].tag), web); /* an heir's heir may need it */
    assert_status((pm_status)ask(OWNER, do_claim, PORT, DATABASE).status, PM_OK);
    assert_int_not_equal(atomic_load(&map.entries[PORT].tag), web);
    ask(OWNER, do_release, PORT, 0);
    assert_status(claimed_by(OWNER), PM_OK);
    assert_int_equal(atomic_load(&map.entries[PORT].tag), web);
    pm_ledger_file_unmap(&map);
}

static void test_each_name_has_its_own_tag(void **state)
{
    (void)state;
    scene(claim_anew);
}

/* ---- into a ledger that was lost ------------------------------------------------------------- */

/* Owner and heir put their halves back, in either order. */
static void come_back(unsigned first, unsigned second)
{
    start_family();
    assert_status(borrowed_by(CHILD), PM_OK);
    assert_int_equal(unlink(path), 0);
    assert_status(status_of(first, do_look), PM_HELD);
    assert_refused(STRANGER);
    assert_status(status_of(second, do_look), PM_HELD);
    assert_refused(STRANGER);
    assert_refused(OTHER_CHILD);
    assert_says(OWNER, "");
    assert_says(CHILD, "");
    assert_status(borrowed_by(GRANDCHILD), PM_OK);
    kill_actor(CHILD);
    ask(OWNER, do_release, PORT, 0);
    assert_refused(STRANGER);
    ask(GRANDCHILD, do_release, PORT, 0);
    assert_status(claimed_by(STRANGER), PM_OK);
}

static void come_back_as_owner_first(void)
{
    come_back(OWNER, CHILD);
}

static void come_back_as_heir_first(void)
{
    come_back(CHILD, OWNER);
}

/* Whoever shares the port may be the first to notice that the ledger is gone. */
static void come_back_in_three_generations(void)
{
    static const unsigned orders[][3] = {
        {OWNER,      CHILD,      GRANDCHILD},
        {OWNER,      GRANDCHILD, CHILD     },
        {CHILD,      OWNER,      GRANDCHILD},
        {CHILD,      GRANDCHILD, OWNER     },
        {GRANDCHILD, OWNER,      CHILD     },
        {GRANDCHILD, CHILD,      OWNER     },
    };

    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        start_family();
        assert_status(borrowed_by(CHILD), PM_OK);
        assert_status(borrowed_by(GRANDCHILD), PM_OK);
        assert_int_equal(unlink(path), 0);
        for (size_t k = 0; k < 3; k++) {
            assert_status(status_of(orders[i][k], do_look), PM_HELD);
        }
        assert_refused(STRANGER);
        for (size_t k = 0; k < 3; k++) {
            assert_says(orders[i][k], "");
        }
        assert_refused(OTHER_CHILD);
        kill_actor(OWNER);
        assert_refused(STRANGER);
        kill_actor(i % 2 ? CHILD : GRANDCHILD);
        assert_refused(STRANGER);
        assert_refused(OTHER_CHILD);
        kill_actor(i % 2 ? GRANDCHILD : CHILD);
        assert_status(claimed_by(STRANGER), PM_OK);
        kill_actor(STRANGER);
        kill_actor(OTHER_CHILD);
    }
}

static void test_three_generations_come_back(void **state)
{
    (void)state;
    scene(come_back_in_three_generations);
}

/* Without their owner heirs lend on in the new ledger; and a stranger's past there is none of
 * theirs. */
static void come_back_without_owner(void)
{
    start_family();
    assert_status(borrowed_by(CHILD), PM_OK);
    assert_status(borrowed_by(GRANDCHILD), PM_OK);
    kill_actor(OWNER);
    assert_int_equal(unlink(path), 0);
    assert_status((pm_status)ask(STRANGER, do_claim, PORT, DATABASE).status, PM_OK);
    ask(STRANGER, do_release, PORT, 0);
    assert_status(status_of(CHILD, do_look), PM_HELD);
    assert_refused(STRANGER);
    assert_status(status_of(GRANDCHILD, do_look), PM_HELD);
    assert_listed(STRANGER, GRANDCHILD);
    kill_actor(GRANDCHILD);
    assert_listed(STRANGER, CHILD);
    spawn(CHILD, GRANDCHILD);
    assert_status((pm_status)ask(GRANDCHILD, do_borrow, PORT, DATABASE).status, PM_HELD);
    assert_status(borrowed_by(GRANDCHILD), PM_OK);
    assert_refused(STRANGER);
    assert_says(CHILD, "");
}

static void test_heirs_come_back_without_their_owner(void **state)
{
    (void)state;
    scene(come_back_without_owner);
}

static const char LOST[] = "1 port of this process went to others";

/* A stranger was quicker, and has lent it to a child of its. */
static void come_back_too_late(void)
{
    for (unsigned i = 0; i < 2; i++) {
        unsigned back = i ? CHILD : OWNER;
        start_family();
        spawn(STRANGER, OTHER_STRANGER);
        assert_status(borrowed_by(CHILD), PM_OK);
        assert_int_equal(unlink(path), 0);
        assert_status(claimed_by(STRANGER), PM_OK);
        assert_status(borrowed_by(OTHER_STRANGER), PM_OK);
        kill_actor(STRANGER);
        assert_status(status_of(back, do_look), PM_HELD); /* it believes so */
        assert_says(back, LOST);
        assert_listed(GRANDCHILD, OTHER_STRANGER);
        kill_actor(OTHER_STRANGER);
        kill_actor(back);
        assert_status(claimed_by(GRANDCHILD), PM_OK);
        for (unsigned number = OWNER; number <= OTHER_CHILD; number++) {
            if (number != back) {
                kill_actor(number);
            }
        }
    }
}

static void test_a_family_that_comes_back_too_late(void **state)
{
    (void)state;
    scene(come_back_too_late);
}

/* One of the family was quicker, and holds it for another name. What is lost is not written to. */
static void come_back_to_another_name(void)
{
    static const unsigned heirs[] = {GRANDCHILD, CHILD};

    for (size_t i = 0; i < sizeof heirs / sizeof *heirs; i++) {
        unsigned back = i ? OWNER : GRANDCHILD;
        start_family();
        if (i == 0) {
            assert_status(borrowed_by(GRANDCHILD), PM_OK);
        }
        assert_int_equal(unlink(path), 0);
        assert_status((pm_status)ask(CHILD, do_claim, PORT, DATABASE).status, PM_OK);
        if (i == 1) {
            assert_status((pm_status)ask(GRANDCHILD, do_borrow, PORT, DATABASE).status, PM_OK);
            ask(CHILD, do_release, PORT, 0);
        }
        assert_status(status_of(back, do_look), PM_HELD); /* it believes so */
        assert_says(back, LOST);
        pm_ledger_map map = mapped();
        int64_t changed_at = atomic_load(&map.entries[PORT].changed_at);
        usleep(20000);
        ask(back, do_release, PORT, 0);
        assert_true(atomic_load(&map.entries[PORT].changed_at) == changed_at);
        pm_ledger_file_unmap(&map);
        assert_listed(STRANGER, i ? GRANDCHILD : CHILD);
        for (unsigned number = STRANGER; number <= OTHER_CHILD; number++) {
            kill_actor(number);
        }
    }
}

static void test_a_family_comes_back_to_another_name(void **state)
{
    (void)state;
    scene(come_back_to_another_name);
}

static void test_both_halves_come_back_in_either_order(void **state)
{
    (void)state;
    scene(come_back_as_owner_first);
    remove_folder(state);
    assert_int_equal(mkdir(folder, 0700), 0);
    scene(come_back_as_heir_first);
}

/* ---- at the same time ------------------------------------------------------------------------ */

/* What the owner and its heir believe the port to be held for. */
typedef struct {
    _Atomic(uint64_t) owned_as, lent_as, violations, lendings, quit;
} beliefs;

static beliefs *believed;

/* Long enough for the other one to come by. */
static void hold_for_a_while(void)
{
    for (volatile int i = 0; i < 2000; i++) {
    }
}

static actor_answer do_claim_in_turns(const actor_order *order)
{
    pm_claim claim;

    for (uint64_t i = 0; !atomic_load(&believed->quit); i++) {
        pm_name name = {.key = i % 2 ? WEB : DATABASE};
        if (pm_ledger_check() == PM_OK &&
            pm_ledger_claim(me, order->port, &name, &claim) == PM_OK) {
            atomic_store(&believed->owned_as, name.key);
            hold_for_a_while();
            uint64_t lent_as = atomic_load(&believed->lent_as);
            believed->violations += lent_as != 0 && lent_as != name.key;
            atomic_store(&believed->owned_as, 0);
            pm_ledger_release(me, order->port);
        }
    }
    return (actor_answer){.status = PM_OK};
}

static actor_answer do_borrow_often(const actor_order *order)
{
    for (uint64_t i = 0; i < order->number; i++) {
        if (borrow(order->port, order->port, WEB).status == PM_OK) {
            atomic_store(&believed->lent_as, WEB);
            hold_for_a_while();
            uint64_t owned_as = atomic_load(&believed->owned_as);
            believed->violations += owned_as != 0 && owned_as != WEB;
            believed->lendings++;
            atomic_store(&believed->lent_as, 0);
            pm_ledger_release(me, order->port);
        }
    }
    return (actor_answer){.status = PM_OK};
}

static void lend_while_names_change(void)
{
    enum { ROUNDS = 2000, LENDINGS = 3000 };

    believed =
        mmap(NULL, sizeof *believed, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(believed, MAP_FAILED);
    start(OWNER);
    assert_status(status_of(OWNER, do_look), PM_OK);
    spawn(OWNER, CHILD);
    assert_true(ask(CHILD, do_ask_for_kin, 0, 0).number);
    tell(OWNER, do_claim_in_turns, PORT, 0);
    for (int tries = 0; atomic_load(&believed->lendings) < LENDINGS; tries++) {
        assert_in_range(tries, 0, 1000);
        ask(CHILD, do_borrow_often, PORT, ROUNDS);
    }
    atomic_store(&believed->quit, 1);
    heard(OWNER);
    assert_int_equal(believed->violations, 0);
    assert_status(status_of(OWNER, do_look), PM_OK);
}

static void test_owner_and_heir_never_hold_for_two_names(void **state)
{
    (void)state;
    scene(lend_while_names_change);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_WITH_FOLDER(test_a_child_is_lent_its_parents_port),
        TEST_WITH_FOLDER(test_others_and_other_names_are_lent_nothing),
        TEST_WITH_FOLDER(test_the_first_port_of_a_range_is_lent),
        TEST_WITH_FOLDER(test_an_ancestor_may_take_part_later),
        TEST_WITH_FOLDER(test_a_descendant_takes_the_heirs_place),
        TEST_WITH_FOLDER(test_who_lent_on_holds_the_port_still),
        TEST_WITH_FOLDER(test_who_lent_on_is_the_heir_again),
        TEST_WITH_FOLDER(test_so_many_generations_share_a_port),
        TEST_WITH_FOLDER(test_a_grandchild_is_lent_its_ancestors_port),
        TEST_WITH_FOLDER(test_an_heir_that_died_or_gave_back_is_replaced),
        TEST_WITH_FOLDER(test_the_port_is_free_when_owner_and_heir_are_dead),
        TEST_WITH_FOLDER(test_a_dead_owner_lends_nothing),
        TEST_WITH_FOLDER(test_the_heir_of_a_dead_owner_lends_on),
        TEST_WITH_FOLDER(test_the_heir_of_a_dead_owner_holds_on),
        TEST_WITH_FOLDER(test_the_owners_release_leaves_the_heir_its_port),
        TEST_WITH_FOLDER(test_the_heirs_release_leaves_the_owner_its_port),
        TEST_WITH_FOLDER(test_only_the_name_of_now_counts),
        TEST_WITH_FOLDER(test_a_recycled_pid_is_no_ancestor),
        TEST_WITH_FOLDER(test_a_dead_owners_tag_says_nothing),
        TEST_WITH_FOLDER(test_each_name_has_its_own_tag),
        TEST_WITH_FOLDER(test_three_generations_come_back),
        TEST_WITH_FOLDER(test_heirs_come_back_without_their_owner),
        TEST_WITH_FOLDER(test_a_family_that_comes_back_too_late),
        TEST_WITH_FOLDER(test_a_family_comes_back_to_another_name),
        TEST_WITH_FOLDER(test_both_halves_come_back_in_either_order),
        TEST_WITH_FOLDER(test_owner_and_heir_never_hold_for_two_names),
    };
    return cmocka_run_group_tests_name("ledger, lending", tests, NULL, NULL);
}
