/* The ledger's protocol between processes: what becomes of a port's word when any process can die
 * between any two steps. A statement, a d_step or an atomic is one step that others see whole: one
 * load, store or compare-and-swap in the mapped file, all sequentially consistent, or one call of
 * the kernel, with what follows from it in one's own variables.
 *
 * A port's word is its owner half and its heir half; a half is a slot and that slot's generation, 0
 * is nobody. A half lives while the slot's byte is locked and the slot's generation is the half's.
 * Death is final and no half comes twice: everything here rests on that. An owner that gave its port
 * back stays in the word as one who LEFT, for the tag is read by its half.
 *
 * Whoever was lent the port is in a cell beside the word, until it gives the port back; for a
 * descendant may take its place in the word.
 *
 * The Makefile gives the sizes: who there is, whose child, with which pid, and what each may do.
 *
 * Left out: threads, managers and library copies of one process, whose own table lets one of them
 * at a time touch a port's word; the hash, as a tag is its name and half; pid and start time as two
 * stores, as they read like one stamp when the pid is cleared first and stored last. */

#define me _pid /* persons are the first processes of the model */

#include "world.pml"

/* The lock comes first: who raised a living holder's generation would kill it. Until the raise the
 * slot's previous holder looks alive: a port is kept a moment too long, never too short. The stamp
 * is cleared before the raise, so that it never shows the previous holder with our generation. */
inline take_slot()
{
    s = 1;
    do
    :: s > SLOTS -> goto done /* none is left */
#if BROKEN == RAISE_BEFORE_LOCK
    :: d_step { s <= SLOTS -> generation[s] = (generation[s] == LAST -> LAST : generation[s] + 1) };
        if
        :: d_step { lock[s] != 0 -> s++ }
        :: d_step { lock[s] == 0 -> lock[s] = me + 1; we_have_slot() };
            stamp[s] = me + 1;
            break
        fi
#else
    :: d_step { s <= SLOTS && lock[s] != 0 -> s++ }
    :: d_step { s <= SLOTS && lock[s] == 0 -> lock[s] = me + 1 };
        if
        :: d_step { generation[s] == LAST && BROKEN != GENERATIONS_WRAP -> /* retired */
                REACHED(RETIREMENT, true);
                lock[s] = 0;
                s++
            }
        :: d_step { generation[s] != LAST || BROKEN == GENERATIONS_WRAP ->
                stamp[s] = (BROKEN == STAMP_NOT_CLEARED -> stamp[s] : 0)
            };
            d_step {
                generation[s] = (generation[s] == LAST -> 1 : generation[s] + 1);
                we_have_slot()
            };
            stamp[s] = me + 1;
            break
        fi
#endif
    od
}

/* Two looks, a step each; whichever finds the half dead is right for ever. */
inline done_if_alive(which)
{
    if
    :: (which) == 0 || (which) >= LEFT || generation[SLOT(which)] != GENERATION(which)
    :: else ->
        if
        :: lock[SLOT(which)] == 0
        :: else -> goto done
        fi
    fi
}

#define WITHOUT_US(word) \
    (BROKEN == RELEASE_WHOLE_WORD -> 0 : \
     (OWNER_OF(word) == half -> WORD(half + LEFT, HEIR_OF(word)) : WORD(OWNER_OF(word), 0)))

/* Only our own half: the other one is somebody's right. */
inline leave_word(p)
{
    do
    :: atomic {
            w = word[p];
            if
            :: OWNER_OF(w) != half && HEIR_OF(w) != half -> break
            :: else
            fi
        };
        word[p] = (word[p] == w -> WITHOUT_US(w) : word[p])
    od
}

inline leave_cell(p)
{
    c = 0;
    do
    :: c == CELLS -> break
    :: d_step { c < CELLS ->
            cell[IN(p, c)] = (cell[IN(p, c)] == half -> 0 : cell[IN(p, c)]);
            c++
        }
    od
}

/* Is anybody but us lent the port? A cell a step, or two. */
inline look_at_cells(p)
{
    c = 0;
    do
    :: c == CELLS -> break
    :: d_step { c < CELLS ->
            q = cell[IN(p, c)];
            q = (q == half || q != 0 && generation[SLOT(q)] != GENERATION(q) -> 0 : q);
            c++
        };
        if
        :: q == 0
        :: d_step { q != 0 && lock[SLOT(q)] == 0 -> q = 0 }
        :: q != 0 && lock[SLOT(q)] != 0 -> break
        fi
    od
}

/* The word, then the cells, then the tag. Nobody else gets into a cell once the word is ours. What
 * was in the word comes back if a cell's holder lives, for that one lends by it. A tag that we left
 * under another name goes first: until ours is written a lender would take the old name for this
 * claim's. */
inline pm_ledger_claim(p, n)
{
    w = word[p];
    done_if_alive(OWNER_OF(w));
    if
    :: BROKEN == OWNER_DEAD_SUFFICES
    :: else -> done_if_alive(HEIR_OF(w))
    fi;
#if BROKEN == CELLS_NOT_REREAD
    look_at_cells(p);
    if
    :: q != 0 -> goto done
    :: else
    fi;
#endif
    d_step {
        if
        :: TAG_HALF(tag[p]) == half && tag[p] != TAG(n, half) && BROKEN != OLD_TAG_LEFT -> tag[p] = 0
        :: else
        fi
    };
    atomic {
        if
        :: word[p] == w ->
            word[p] = WORD(half, 0)
        :: BROKEN == TWO_WORDS && word[p] != w && OWNER_OF(word[p]) == OWNER_OF(w) ->
            word[p] = WORD(half, HEIR_OF(word[p]))
        :: else -> goto done
        fi
    };
#if BROKEN != CELLS_NOT_REREAD && BROKEN != CELLS_IGNORED
    look_at_cells(p);
    if
    :: q != 0 ->
        atomic {
            REACHED(CLAIM_GIVEN_UP, true);
            word[p] = (word[p] == WORD(half, 0) -> w : word[p])
        };
        leave_word(p);
        goto done
    :: else
    fi;
#endif
    d_step {
        check_claimed(p, n);
        hold[AT(me, p)] = OWNER;
        held_as[AT(me, p)] = n;
        REACHED(TAKEOVER, OWNER_OF(w) != 0 && OWNER_OF(w) < LEFT && HEIR_OF(w) != 0)
    };
    tag[p] = TAG(n, half)
}

/* The tag stays: heirs lend by it. */
inline pm_ledger_release(p)
{
    d_step {
        hold[AT(me, p)] = NOT;
        held_as[AT(me, p)] = 0
    };
    leave_word(p);
    leave_cell(p)
}

#include "lending.pml"

active [PERSONS] proctype person()
{
    short w;
    byte half, p, n, s, g, k, q, c, at;
    byte chain[DEPTH], link[SLOTS + 1], theirs[SLOTS + 1];
    bool met[DEPTH], any;

end_unborn:
    d_step { /* a child of a living parent, with a pid that nobody has */
        has_pid[pid_of[me]] == 0 && (parent[me] == NONE -> true : life[parent[me]] == ALIVE) ->
        has_pid[pid_of[me]] = me + 1;
        life[me] = ALIVE;
        be_born()
    };
image:
    {
end_idle:
        do
        :: atomic {
                calls[me] > 0 ->
                calls[me]--;
                busy[me] = true;
                if
                :: p = 0
#if PORTS > 1
                :: p = 1
#endif
                fi;
                if
                :: n = 1
#if NAMES > 1
                :: hold[AT(me, p)] == NOT -> n = 2
#endif
                fi
            };
            if
            :: half == 0 -> take_slot()
            :: else
            fi;
            if
            :: hold[AT(me, p)] != NOT -> pm_ledger_release(p)
            :: hold[AT(me, p)] == NOT && may[me] & CLAIM -> pm_ledger_claim(p, n)
            :: hold[AT(me, p)] == NOT && may[me] & LEND -> pm_ledger_lend(p, n)
            fi;
done:
            atomic {
                n = 0;
                d_step { forget_call(); busy[me] = false; check_when_quiet() }
            }
        od
    } unless {
        atomic {
            image_ends[me] ? _;
            d_step {
                forget_call();
                half = 0
            }
            if
            :: life[me] == ALIVE -> goto image /* exec */
            :: else
            fi
        }
    };
    atomic { life[me] = GONE; has_pid[pid_of[me]] = 0 };
end_gone:
    false
}

/* Death and exec, between any two steps of anybody. */
#define whose (_pid - PERSONS)
active [PERSONS] proctype fate()
{
end:
    do
    :: atomic {
            life[whose] == ALIVE && deaths > 0 ->
            d_step { deaths--; life[whose] = DYING; let_go(whose) };
            image_ends[whose] ! 0
        }
#if EXECS > 0
    :: atomic {
            life[whose] == ALIVE && execs > 0 ->
            d_step { execs--; let_go(whose) };
            image_ends[whose] ! 0
        }
#endif
    od
}
