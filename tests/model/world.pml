/* The world the protocol lives in: processes, the kernel, the mapped file; what must never happen;
 * and the list of what the Makefile can switch on. */

/* Rules that can be broken, to see the model find what goes wrong. */
#define RAISE_BEFORE_LOCK    1 /* a slot's generation is raised before its byte is locked */
#define GENERATIONS_WRAP     2 /* after the last generation comes the first */
#define STAMP_NOT_CLEARED    3 /* the previous holder's stamp stays until ours is stored */
#define GENERATION_READ_ONCE 4 /* after the stamp only, not before it too */
#define START_NOT_COMPARED   5 /* of pid and start time the pid suffices */
#define CHAIN_NOT_REWALKED   6 /* parents are looked up once */
#define LINKS_NOT_COMPARED   7 /* the second walk must meet the ancestor, by whatever way */
#define TWO_WORDS            8 /* owner and heir are swapped apart */
#define OWNER_DEAD_SUFFICES  9 /* a claim does not look at the heir */
#define RELEASE_WHOLE_WORD   10 /* a release takes the other half too */
#define CELLS_IGNORED        11 /* by a claim */
#define OLD_TAG_LEFT         12 /* a claim does not clear its own tag of another name */
#define TAG_WITHOUT_OWNER    13 /* the tag tells the name only */
#define TAG_NOT_REREAD       14 /* once the heir is in the word */
#define CELLS_NOT_REREAD     15 /* once one's half is in the word */
#define HEIR_NOT_IN_CELL     16 /* its place is taken all the same */
#ifndef BROKEN
#define BROKEN 0
#endif

/* Events that can be called impossible, to see the model find them: else it would hold because
 * nothing happens in it. */
#define RETIREMENT         1
#define TAKEOVER           2 /* of a word with two dead halves */
#define LENDING            3 /* by a living owner */
#define HEIR_ALONE         4 /* the owner is gone, the heir still keeps the port */
#define DEAD_HEIR_REPLACED 5
#define HANDING_DOWN       6 /* a descendant in a living heir's place */
#define WITHDRAWAL         7 /* of an heir, for its owner has claimed the port anew */
#define CLAIM_GIVEN_UP     8 /* for somebody in a cell */
#define STRANGER_IN_CHAIN  9 /* a pid of the chain has changed hands between the walks */
#define CELL_ALONE         10 /* who lent on is what remains of three generations */
#define LENDING_AGAIN      11 /* by one who is in a cell alone */
#ifndef REACH
#define REACH 0
#endif
#define REACHED(event, condition) assert(REACH != event || !(condition))

#ifndef PORTS
#define PORTS 1
#endif
#ifndef NAMES
#define NAMES 1
#endif
#ifndef DEATHS
#define DEATHS PERSONS /* how many may die */
#endif
#ifndef CELLS
#define CELLS 2
#endif
#ifndef EXECS
#define EXECS 0 /* how often somebody may exec */
#endif
#ifndef WARM
#define WARM 0 /* 1: born with a slot, and ancestors are found in one step: sizes with more calls */
#endif

/* Persons are processes from birth to death; a pid may have several, one after the other. */
#define NONE  255
#define CLAIM 1 /* what a person may do: the bits of may[] */
#define LEND  2
#define BOTH  3
byte parent[PERSONS] = PARENTS;
byte pid_of[PERSONS] = PIDS;
byte may[PERSONS] = MAY;
byte calls[PERSONS] = CALLS; /* how many are left to each */

#define UNBORN 0
#define ALIVE  1
#define DYING  2 /* its lock is gone, and it still is its children's parent */
#define GONE   3 /* its pid is free, its children are orphans */
byte life[PERSONS];
byte has_pid[TOP_PID + 1]; /* who: person + 1, 0 for nobody */
chan image_ends[PERSONS] = [0] of { bit }; /* by death or exec */
byte deaths = DEATHS;
byte execs = EXECS;

#define PRESENT(i)     (life[i] == ALIVE || life[i] == DYING)
#define PARENT_PID(i)  (parent[i] == NONE -> 0 : (PRESENT(parent[i]) -> pid_of[parent[i]] : 0))
#define UP(i)          (i == NONE -> NONE : parent[i])
#define DESCENDS(d, a) (parent[d] == a || UP(parent[d]) == a || UP(UP(parent[d])) == a)

/* The mapped file. */
short word[PORTS];
byte tag[PORTS];
byte cell[PORTS * CELLS];
byte generation[SLOTS + 1]; /* slots count from 1 */
byte stamp[SLOTS + 1];      /* pid and start time of the holder: its person + 1, 0 for nobody */
byte lock[SLOTS + 1];       /* kept by the kernel: person + 1 */

#define HALF(slot, generation) ((slot) * 4 + (generation))
#define SLOT(half)             ((half) / 4)
#define GENERATION(half)       ((half) % 4)
#define WORD(owner, heir)      ((owner) * 32 + (heir))
#define OWNER_OF(word)         ((word) / 32)
#define HEIR_OF(word)          ((word) % 32)
#define LEFT                   32 /* beside an owner's half: it gave the port back */
#define OWNER_HALF(word)       (OWNER_OF(word) % LEFT)
#define IN(port, number)       ((port) * CELLS + (number))
#define TAG(name, half)        ((name) * 32 + (BROKEN == TAG_WITHOUT_OWNER -> 0 : (half)))
#define TAG_HALF(tag)          ((tag) % 32)
#define LIVES(half) \
    ((half) != 0 && (half) < LEFT && generation[SLOT(half)] == GENERATION(half) && lock[SLOT(half)] != 0)
#define HOLDER(half) (lock[SLOT(half)] - 1) /* of a half that lives */

/* What really is: no step of the protocol reads it. */
#define NOT        0
#define OWNER      1
#define HEIR       2
#define AT(person, port) ((person) * PORTS + (port))
byte taken_by[LEFT]; /* who has, or had, a half: person + 1 */
byte hold[PERSONS * PORTS];
byte held_as[PERSONS * PORTS]; /* the name */
bool busy[PERSONS];            /* within a call */

hidden byte i, j; /* of loops within one step */

inline we_have_slot()
{
    half = HALF(s, generation[s]);
    taken_by[half] = me + 1
}

/* Nobody else holds the port that we just claimed, but those whom we lent it to meanwhile. */
inline check_claimed(p, n)
{
    for (i : 0 .. PERSONS - 1) {
        assert(i == me || hold[AT(i, p)] == NOT ||
               hold[AT(i, p)] == HEIR && DESCENDS(i, me) && held_as[AT(i, p)] == n)
    }
    i = 0
}

/* Beside us, an heir, only ancestors hold the port, and under this name, or those whom we lent it to
 * meanwhile. Not even a dead stranger has lent to us. */
inline check_lent(p, n)
{
    assert(DESCENDS(me, taken_by[OWNER_HALF(w)] - 1));
    REACHED(LENDING, LIVES(OWNER_OF(w)));
    REACHED(HANDING_DOWN, LIVES(HEIR_OF(w)));
    REACHED(DEAD_HEIR_REPLACED, HEIR_OF(w) != 0 && !LIVES(HEIR_OF(w)));
    for (i : 0 .. PERSONS - 1) {
        assert(i == me || hold[AT(i, p)] == NOT ||
               (DESCENDS(me, i) || hold[AT(i, p)] == HEIR && DESCENDS(i, me)) &&
               held_as[AT(i, p)] == n);
        REACHED(LENDING_AGAIN, i != me && hold[AT(i, p)] == HEIR && DESCENDS(me, i) &&
                               !LIVES(OWNER_OF(w)) && !LIVES(HEIR_OF(w)))
    }
    i = 0
}

/* While nobody is within a call: who is in a word or a cell and lives, holds that port. So a port
 * that no living process holds is there for the next claim, and nothing stays taken that was given
 * back. */
inline check_when_quiet()
{
    j = 0;
    for (i : 0 .. PERSONS - 1) { j = j + busy[i] }
    if
    :: j == 0 ->
        for (i : 0 .. PORTS - 1) {
            assert(!LIVES(OWNER_OF(word[i])) ||
                   hold[AT(HOLDER(OWNER_OF(word[i])), i)] == OWNER);
            assert(!LIVES(HEIR_OF(word[i])) || hold[AT(HOLDER(HEIR_OF(word[i])), i)] == HEIR);
            REACHED(HEIR_ALONE, !LIVES(OWNER_OF(word[i])) && LIVES(HEIR_OF(word[i])))
        }
        for (i : 0 .. PORTS * CELLS - 1) {
            assert(!LIVES(cell[i]) || hold[AT(HOLDER(cell[i]), i / CELLS)] == HEIR);
            REACHED(CELL_ALONE, LIVES(cell[i]) && !LIVES(OWNER_OF(word[i / CELLS])) &&
                                HEIR_OF(word[i / CELLS]) != 0 && !LIVES(HEIR_OF(word[i / CELLS])))
        }
    :: else
    fi;
    i = 0;
    j = 0
}

/* At death and at exec the kernel drops the lock, and all that the process believed is void. */
inline let_go(who)
{
    for (i : 1 .. SLOTS) { lock[i] = (lock[i] == who + 1 -> 0 : lock[i]) }
    for (i : 0 .. PORTS - 1) {
        hold[AT(who, i)] = NOT;
        held_as[AT(who, i)] = 0
    }
    busy[who] = false;
    check_when_quiet()
}

/* A call's variables, emptied: they must not tell states apart that are the same. */
inline forget_call()
{
    p = 0; n = 0; w = 0; s = 0; g = 0; k = 0; q = 0; c = 0; at = 0; any = false;
    for (i : 0 .. DEPTH - 1) { chain[i] = 0; met[i] = false }
    for (i : 1 .. SLOTS) { link[i] = 0; theirs[i] = 0 }
    i = 0
}

inline be_born()
{
#if WARM
    lock[me + 1] = me + 1;
    generation[me + 1] = 1;
    stamp[me + 1] = me + 1;
    half = HALF(me + 1, 1);
    taken_by[half] = me + 1
#else
    skip
#endif
}
