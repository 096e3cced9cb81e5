# What runs a Program, a whole epoch without Python, and the threads that share it.

from libc.math cimport isfinite
from libc.stdlib cimport calloc, free

from fastae.executor import check_run, team_of_rows, team_size

cdef extern from "kernels.h" nogil:
    void ask_for(const void* source, Py_ssize_t size)

cdef extern from "team.h" nogil:
    ctypedef struct Seat:
        double slept
    void tell(Seat* seat, uint32_t round)
    void wait_for(Seat* seat, uint32_t round)
    void tell_one_more(Seat* seat)
    void enter(uint32_t* users)
    uint32_t leave(uint32_t* users)
    bint arrive(uint32_t* count)
    uint32_t arrived(const uint32_t* count)
    uint32_t close_for_others(uint32_t* count)
    ctypedef struct Member:
        void (*work)(void* crew, Py_ssize_t part) noexcept nogil
        void* crew
        Py_ssize_t part
    int start_member(Member* member)
    int move_apart(Seat* seats, Py_ssize_t part, Py_ssize_t parts)
    void meet(Seat* seats, uint32_t* round, Py_ssize_t part, Py_ssize_t parts)
    ctypedef struct Tuner:
        int team
    Tuner new_tuner()
    void time_from_now(Tuner* tuner, double slept)
    int tune(Tuner* tuner, double slept, Py_ssize_t parts)
    bint alone(const Tuner* tuner, Py_ssize_t batches)
    uint64_t flush_denormals()
    void restore_denormals(uint64_t before)

cdef struct Matrix:
    # some columns of what is gathered for a batch, or of the output
    Py_ssize_t offset, first, columns  # where they are, the first of them in a row outside, how many

cdef enum:
    MOST_SHARDS = 2  # as fastae.sharding has them
    IN_TWO_PASSES = -1  # as fastae.program has it
    ROWS_AHEAD = 3  # of those of a batch, which lie anywhere: 2 to 6 % of a step of quark_mlp (8 gain less)

cdef struct Rows:
    # rows of the caller's: one matrix in the arena, or one for each shard
    Py_ssize_t columns, matrices
    Matrix matrix[MOST_SHARDS]

cdef struct Job:
    # all that the threads of a run share
    void* arena
    const int64_t* code        # instructions for a whole batch
    const int64_t* tail_code   # and for the last, smaller one
    int64_t opens, tail_opens  # whether to meet before the first instruction, as column 1 says after others
    Py_ssize_t instructions, width, check, batch, rows
    const char* data
    const char* target
    const char* weights
    const int64_t* order
    Rows input_rows, target_rows, output_rows
    Py_ssize_t weight_offset, pad
    Py_ssize_t loss_offset[MOST_SHARDS]  # for each shard a copy
    Py_ssize_t shards  # 0 where threads share each instruction
    double* losses
    char* out
    int64_t* control
    bint trains
    Seat* seats
    # Where each thread gathers the batch for itself: of each a job that says where, with the code that looks
    # there. Else NULL.
    Job** places
    # The first thread may go on alone, from batch `alone_from`: until the others are there, or as the tuner
    # says. They wait until they are recalled, for the next batch or because all is over.
    Tuner* tuner
    Seat recall
    uint32_t recalls, there
    Py_ssize_t alone_from, next_batch
    bint over


cdef void fetch(Job* job, const char* source, const Rows* rows, Py_ssize_t start, Py_ssize_t count,
                real* arena, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """This part of the batch of `count` rows that begins with row `start` of the order: into the arena."""
    cdef Py_ssize_t m, i, row, ahead, first = 0, end = count
    cdef const Matrix* to
    if job.places == NULL and rows.matrices == 1:
        first, end = share(count, part, parts), share(count, part + 1, parts)
    for i in range(first, end):
        row, ahead = start + i, start + min(i + ROWS_AHEAD, end - 1)
        if job.order != NULL:
            row, ahead = job.order[row], job.order[ahead]
        for m in range(rows.matrices):
            if rows.matrices == 1 or m % parts == part:
                to = &rows.matrix[m]
                ask_for(<const real*>source + ahead * rows.columns + to.first, to.columns * sizeof(real))
                memcpy(arena + to.offset + i * ld(to.columns, job.pad),
                       <const real*>source + row * rows.columns + to.first, to.columns * sizeof(real))


cdef void hand_out(Job* job, const Rows* rows, Py_ssize_t start, Py_ssize_t first, Py_ssize_t end,
                   const real* arena) noexcept nogil:
    """Rows `first` to `end` of the output, of a batch that begins with row `start`."""
    cdef Py_ssize_t m, i
    cdef const Matrix* given
    for m in range(rows.matrices):
        given = &rows.matrix[m]
        for i in range(first, end):
            memcpy(<real*>job.out + (start + i) * rows.columns + given.first,
                   arena + given.offset + i * ld(given.columns, job.pad), given.columns * sizeof(real))


cdef inline bint must_meet(int64_t barrier, Py_ssize_t rows, Py_ssize_t parts) noexcept nogil:
    """Whether a team must meet, as Routine.barriers says: 2, where its work is not shared out by rows."""
    return parts > 1 and (barrier == 1 or (barrier == 2 and rows < ROWS_A_THREAD * parts))


cdef void run_batches(Job* job, real* arena, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """One thread's part of a run: every batch, every instruction, no Python and no allocation."""
    cdef Py_ssize_t batch = 0, start, count, i, alone, loss = job.loss_offset[part if job.shards else 0]
    cdef Py_ssize_t first, end, team = parts
    cdef Job* own = job if job.places == NULL else job.places[part]
    cdef const int64_t* code
    cdef const int64_t* row
    cdef int64_t opens
    cdef int64_t* header = <int64_t*>arena
    cdef uint32_t round = 0, recalls = 0
    if parts > 1:
        move_apart(job.seats, part, parts)
    while batch * job.batch < job.rows:
        if part > 0:
            if job.alone_from == batch:
                recalls += 1
                wait_for(&job.recall, recalls)
                if job.over:
                    return
                move_apart(job.seats, part, parts)
                batch = job.next_batch
                meet(job.seats, &round, part, parts)
        elif job.alone_from == batch:
            team = 1
        elif (team < parts and (job.tuner == NULL or job.tuner.team)
              and arrived(&job.there) == <uint32_t>parts - 1):
            team = parts
            job.next_batch = batch
            job.recalls += 1
            tell(&job.recall, job.recalls)
            # all are there before anything changes of what they read on their way
            meet(job.seats, &round, part, parts)
            if job.tuner != NULL:
                time_from_now(job.tuner, job.seats[0].slept)
        start = batch * job.batch
        count = min(job.batch, job.rows - start)
        code, opens = own.code, own.opens
        if count < job.batch:
            code, opens = own.tail_code, own.tail_opens
        fetch(job, job.data, &own.input_rows, start, count, arena, part, team)
        if job.target != NULL:
            fetch(job, job.target, &own.target_rows, start, count, arena, part, team)
        if job.weights != NULL:
            first, end = share(count, part, team), share(count, part + 1, team)
            if job.places != NULL:
                first, end = 0, count
            for i in range(first, end):
                arena[own.weight_offset + i] = (<const real*>job.weights)[
                    start + i if job.order == NULL else job.order[start + i]]
        if must_meet(opens, count, team):
            meet(job.seats, &round, part, team)
        for i in range(job.instructions + 1):
            if i == job.check and i > 0:
                # every thread sees the same loss and takes the same way
                if job.losses != NULL and part == 0:
                    job.losses[batch] = arena[loss]
                if not isfinite(arena[loss]):
                    if part == 0:
                        job.control[2] = batch
                    return
            if i < job.instructions:
                row = code + i * job.width
                alone = row[job.width - 1]
                if alone <= 0:
                    instructions_of(arena)[row[0]](arena, row + 2, job.pad, part, team)
                    if alone == IN_TWO_PASSES and team > 1:
                        meet(job.seats, &round, part, team)
                        instructions_of(arena)[row[0]](arena, row + 2, job.pad, part, -team)
                elif (alone - 1) % team == part:
                    instructions_of(arena)[row[0]](arena, row + 2, job.pad, 0, 1)
                if must_meet(row[1], count, team):
                    meet(job.seats, &round, part, team)
        if job.out != NULL:
            hand_out(job, &own.output_rows, start, share(count, part, team), share(count, part + 1, team),
                     arena)
        if part == 0:  # what all have to know: whether to stop, and who does the next batch
            # in one of two places: who is late reads the other one's while this thread is a batch ahead
            job.control[3 + batch % 2] = job.control[0]
            if job.tuner != NULL and (team == parts or not job.tuner.team):
                if not tune(job.tuner, job.seats[0].slept, parts) and team > 1:
                    job.alone_from = batch + 1
        meet(job.seats, &round, part, team)
        if part == 0:  # nobody reads the number of updates any more, or again before they meet
            if job.trains:
                header[0] += 1
            job.control[1] = batch + 1
        if job.control[3 + batch % 2]:
            return
        batch += 1


cdef void run_part(Job* job, bint single, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    if single:
        run_batches(job, <float*>job.arena, part, parts)
    else:
        run_batches(job, <double*>job.arena, part, parts)


cdef int READABLE = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT


cdef class Holder:
    """Buffers, held as long as it lives."""

    cdef Py_buffer views[8]  # more than any has
    cdef int count

    cdef void* hold(self, object array, str name, char letter, Py_ssize_t size, bint writable) except? NULL:
        """Address of a C-contiguous array of 'f', 'd' or, as 'q', int64, of at least `size` elements."""
        cdef Py_buffer* view = &self.views[self.count]
        cdef Py_ssize_t itemsize = 4 if letter == c"f" else 8
        if array is None:
            return NULL
        PyObject_GetBuffer(array, view, READABLE | (PyBUF_WRITABLE if writable else 0))
        self.count += 1
        if (view.format == NULL or view.format[0] == 0 or view.format[1] != 0
                or (view.format[0] != letter and (view.format[0] != c"l" or letter != c"q"))):
            raise TypeError(f"{name}: expected a buffer of format {chr(letter)!r}, got {view.format!r}")
        if view.itemsize != itemsize:
            raise TypeError(f"{name}: expected elements of {itemsize} bytes, got {view.itemsize}")
        if view.len < size * view.itemsize:
            raise ValueError(f"{name}: expected at least {size} elements, got {view.len // view.itemsize}")
        return view.buf

    def __dealloc__(self):
        while self.count > 0:
            self.count -= 1
            PyBuffer_Release(&self.views[self.count])


cdef Rows rows_of(slot, Py_ssize_t distance) except *:
    """Where the rows of a slot are, so many elements from where it says."""
    cdef Rows rows
    cdef Py_ssize_t first = 0
    shards = slot.shards or (slot,)
    if len(shards) > MOST_SHARDS:
        raise ValueError(f"{slot}: expected at most {MOST_SHARDS} shards, got {len(shards)}")
    rows.columns, rows.matrices = slot.columns, len(shards)
    for m, shard in enumerate(shards):
        rows.matrix[m] = Matrix(offset=shard.offset + distance, first=first, columns=shard.columns)
        first += shard.columns
    return rows


cdef class Prepared(Holder):
    """What the runs of a routine have in common: a job without data."""

    cdef Job job
    cdef object routine  # that it was asked for: kept, for it is known by its id

    def __cinit__(self, routine, Py_ssize_t batch, Py_ssize_t tail, Py_ssize_t distance):
        # what is gathered for a batch lies so many elements from where the routine says
        cdef Job* job = &self.job
        code = routine.encode_apart(batch, distance)
        job.code = <const int64_t*>self.hold(code, "code", c"q", 0, False)
        job.tail_code = <const int64_t*>self.hold(
            routine.encode_apart(tail, distance) if tail else None, "code", c"q", 0, False)
        job.opens = routine.opens(batch)
        if tail:
            job.tail_opens = routine.opens(tail)
        job.instructions, job.width = code.shape
        job.batch, job.check, job.trains = batch, routine.check, routine.trains
        job.shards = routine.shards
        job.input_rows = rows_of(routine.input, distance)
        if routine.target is not None:
            job.target_rows = rows_of(routine.target, distance)
        if routine.weight is not None:
            job.weight_offset = routine.weight.offset + distance
        if routine.output is not None:
            job.output_rows = rows_of(routine.output, distance if routine.output in routine.gathered else 0)
        for shard, loss in enumerate(routine.losses or (() if routine.loss is None else (routine.loss,))):
            job.loss_offset[shard] = loss.offset


cdef struct Crew:
    # the threads of a run, and what they share; lasts until the last of them has left
    Job job
    Job* shares  # NULL where all share each instruction, else one for each thread, with rows of its own
    Py_ssize_t parts
    bint single, takes_place
    Seat start  # 0 until it is decided whether all threads come
    Seat left   # how many that came in time touch nothing any more but this crew
    Member* members
    Job** places  # room for those of the job
    uint32_t users
    int64_t own_control[8]


cdef void dismiss(Crew* crew) noexcept nogil:
    if leave(&crew.users) == 0:
        free(crew.shares)
        free(crew)


cdef void take_part(void* given, Py_ssize_t part) noexcept nogil:
    """What a thread of the team does; who has rows of its own does them however late it comes."""
    cdef Crew* crew = <Crew*>given
    cdef uint64_t before
    if part > 0:
        wait_for(&crew.start, 1)
    if crew.takes_place and (part == 0 or arrive(&crew.job.there)):
        before = flush_denormals()
        if crew.shares != NULL:
            move_apart(crew.job.seats, part, crew.parts)
            run_part(&crew.shares[part], crew.single, 0, 1)
        else:
            run_part(&crew.job, crew.single, part, crew.parts)
        restore_denormals(before)
        if part == 0:
            crew.job.over = True
            tell(&crew.job.recall, crew.job.recalls + 1)
        else:
            tell_one_more(&crew.left)
    if part > 0:
        dismiss(crew)


cdef class Run(Holder):
    """One run: its crew, and the buffers held as long as any thread may use them."""

    cdef Crew* crew
    cdef tuple prepared

    def __cinit__(self, Prepared prepared, Py_ssize_t parts, bint single):
        cdef Py_ssize_t line = sizeof(Seat)
        # not Python's memory: a thread that leaves last gives it back
        self.crew = <Crew*>calloc(
            1, sizeof(Crew) + parts * (sizeof(Member) + sizeof(Job*)) + (parts + 1) * line)
        if self.crew == NULL:
            raise MemoryError
        self.prepared = (prepared,)
        self.crew.job = prepared.job
        self.crew.parts, self.crew.single, self.crew.users = parts, single, 1
        self.crew.members = <Member*>(self.crew + 1)
        self.crew.places = <Job**>(self.crew.members + parts)
        self.crew.job.seats = <Seat*>((<uintptr_t>(self.crew.places + parts) + line - 1) // line * line)
        self.crew.job.alone_from = -1

    def __dealloc__(self):
        if self.crew != NULL:
            dismiss(self.crew)

    cdef void place(self, tuple prepared):
        """Let each thread gather every batch where its job says."""
        cdef Py_ssize_t part
        self.prepared = prepared
        self.crew.job.places = self.crew.places
        for part in range(self.crew.parts):
            self.crew.places[part] = &(<Prepared>prepared[part]).job

    cdef int divide(self, tuple prepared) except -1:
        """Give each thread whole batches of its own, which it computes where its job says."""
        cdef Crew* crew = self.crew
        cdef Py_ssize_t itemsize = 4 if crew.single else 8, batch = crew.job.batch, part, first
        cdef Py_ssize_t batches = (crew.job.rows + batch - 1) // batch
        cdef Job* job
        cdef Job* own
        self.prepared = prepared
        crew.shares = <Job*>calloc(crew.parts, sizeof(Job) + sizeof(crew.own_control))
        if crew.shares == NULL:
            raise MemoryError
        for part in range(crew.parts):
            job, own = &crew.shares[part], &(<Prepared>prepared[part]).job
            first = share(batches, part, crew.parts) * batch
            job[0] = crew.job
            job.rows = min(share(batches, part + 1, crew.parts) * batch, crew.job.rows) - first
            job.data += first * job.input_rows.columns * itemsize
            job.out += first * job.output_rows.columns * itemsize
            job.code, job.tail_code = own.code, own.tail_code
            job.input_rows, job.output_rows = own.input_rows, own.output_rows
            job.control = <int64_t*>(crew.shares + crew.parts) + 8 * part
        return 0

    cdef int begin(self) except -1:
        """Start the other threads and take part; gives back when none of them touches anything any more."""
        cdef Crew* crew = self.crew
        cdef Py_ssize_t started = 1
        while started < crew.parts:
            crew.members[started] = Member(work=take_part, crew=crew, part=started)
            enter(&crew.users)
            if start_member(&crew.members[started]) != 0:
                leave(&crew.users)
                break
            started += 1
        with nogil:
            crew.takes_place = started == crew.parts  # else who was started goes home
            tell(&crew.start, 1)
            if crew.takes_place:
                take_part(crew, 0)
                # who shares instructions and has not come is not needed any more
                wait_for(&crew.left,
                         crew.parts - 1 if crew.shares != NULL else close_for_others(&crew.job.there))
        if started < crew.parts:
            raise RuntimeError(f"cannot start {crew.parts - 1} more threads: the system gave {started - 1}")
        return 0


#: FLOPs of a batch that are worth a thread.
cdef double WORTH_A_THREAD = 1e6
#: The first batch is done by one thread while the others start where there are so many, of so few FLOPs.
cdef Py_ssize_t MANY_BATCHES = 16
cdef double SHORT_BATCH = 2e7


cdef class Executor:
    """Runs the routines of a Program, a whole epoch in one call, without the GIL.

    Parameters
    ----------
    program : fastae.program.Program
        Lowered with padded rows.
    arena : ndarray of shape (program.arena_size,)
        The memory it runs in; kept alive by the executor.
    n_threads : int or None
        Threads that share each instruction or, in inference of several batches, the batches; at least 1.
        None: chosen for each run by its work and, where they share instructions, while it runs by what is
        measured to be faster, the team or one thread. The bits are the same for any number. A Program in
        shards takes no more than it has shards, but for inference of several batches.

    Raises
    ------
    ValueError
        If `n_threads` is less than 1.
    """

    cdef readonly object program, arena, n_threads
    cdef bint single
    cdef Holder holder
    cdef void* base  # of the arena
    cdef dict routines, rooms
    cdef Py_ssize_t pad, batch
    cdef Tuner[2] tuners  # of routines that train, and of others

    def __init__(self, program, arena, n_threads=1):
        if n_threads is not None and n_threads < 1:
            raise ValueError(f"n_threads: expected at least 1, got {n_threads}")
        self.program = program
        self.arena = arena
        self.n_threads = n_threads
        self.single = arena.dtype == "float32"
        self.pad = 64 // arena.itemsize
        self.batch = program.batch_size
        self.holder = Holder()
        self.base = self.holder.hold(
            arena, "arena", c"f" if self.single else c"d", program.arena_size, True)
        self.routines = {}
        self.rooms = {}  # where a thread other than the first has batches of its own, or copies of them
        for i in range(2):
            self.tuners[i] = new_tuner()

    def run(self, routine, data, target, order, *, weights=None, losses=None, out=None, control=None):
        """Run `routine` over the rows of `data` (see the executor protocol in fastae.executor)."""
        check_run(routine, data, target, order, weights, out)
        cdef Py_ssize_t given = len(data), rows = given if order is None else len(order)
        cdef Py_ssize_t batches = (rows + self.batch - 1) // self.batch
        cdef Py_ssize_t tail = rows % self.batch
        cdef Py_ssize_t parts
        # Batches that nothing passes on between are not worth a barrier.
        cdef bint apart = (batches > 1 and out is not None and not routine.trains and target is None
                           and order is None and losses is None and control is None)
        if self.n_threads is None:
            parts = (team_of_rows(routine, rows) if apart
                     else team_size(routine, rows, self.batch, WORTH_A_THREAD))
        else:
            parts = self.n_threads
        if apart:
            parts = min(parts, batches)
        elif routine.shards:
            parts = min(parts, routine.shards)
        cdef Tuner* tuner = NULL
        if parts > 1 and self.n_threads is None and not apart:
            tuner = &self.tuners[routine.trains]
            if alone(tuner, batches):
                parts = 1
        # threads that gather for themselves have code of their own, as those that compute apart
        cdef bint several = parts > 1 and (apart or routine.gathered_by_each)
        cdef tuple prepared = self._prepared(routine, tail, parts if several else 1, apart)
        cdef Run run = Run(prepared[0], parts, self.single)
        cdef Job* job = &run.crew.job
        cdef char kind = c"f" if self.single else c"d"
        job.rows = rows
        job.data = <const char*>run.hold(data, "data", kind, given * job.input_rows.columns, False)
        job.order = <const int64_t*>run.hold(order, "order", c"q", rows, False)
        job.target = <const char*>run.hold(target, "target", kind, given * job.target_rows.columns, False)
        job.weights = <const char*>run.hold(weights, "weights", kind, given, False)
        job.out = <char*>run.hold(out, "out", kind, rows * job.output_rows.columns, True)
        job.losses = <double*>run.hold(losses, "losses", c"d", batches, True)
        job.control = <int64_t*>run.hold(control, "control", c"q", 8, True)
        if job.control == NULL:
            job.control = run.crew.own_control
        job.control[1], job.control[2] = 0, -1
        job.tuner = tuner
        if tuner != NULL:
            time_from_now(tuner, 0)
        if parts > 1 and not apart:
            if tuner != NULL and not tuner.team or batches >= MANY_BATCHES and routine.work < SHORT_BATCH:
                job.alone_from = 0
        job.pad = self.pad
        if several and apart:
            run.divide(prepared)
        elif several:
            run.place(prepared)
        run.begin()

    cdef tuple _prepared(self, routine, Py_ssize_t tail, Py_ssize_t parts, bint apart):
        """What runs of a routine have in common whose last batch has `tail` rows, 0 for a whole one: for each
            part what it has of its own.

        Part 0 computes in the arena. Another has a room: for batches of its own where they compute `apart`,
        with what lasts in the arena; else for its copy of each batch.
        """
        cdef Prepared made
        cdef Py_ssize_t part, distance  # from the arena to the room, in elements
        key = (id(routine), tail, parts, apart)
        found = self.routines.get(key)
        if found is None:
            if len(self.routines) >= 64:  # schedules bring a new routine for each rate
                self.routines.clear()
            found = []
            for part in range(parts):
                distance = 0
                if part > 0:
                    if part not in self.rooms:
                        self.rooms[part] = self.program.new_arena()
                    distance = <Py_ssize_t>(<uintptr_t>self.rooms[part].ctypes.data - <uintptr_t>self.base)
                    distance //= 64 // self.pad
                if apart and part > 0:
                    made = Prepared(self.program.moved(routine, distance), self.batch, tail, 0)
                else:
                    made = Prepared(routine, self.batch, tail, distance)
                made.job.arena = self.base
                made.routine = routine
                found.append(made)
            found = self.routines[key] = tuple(found)
        return found
