/* Gathers of few images (lanes.h): what fills the lanes is pieces of the images, their cells, in place of as many images.
 *
 * A cell is so many places of the output, side by side in both directions, with all that they read. The sources of a line
 * of cells are laid out as those of a block of images would be, with zeros beyond the edges, and what is made of them is
 * put where it belongs. Of one place outputs fill the lanes. Every number is the sum that a block of images gives it: a
 * product with one of those zeros adds nothing, as long as weights are finite, and no sum ends as -0.
 *
 * Where the sources of a line do not fit into its room, as those of a hundred channels, images stay as they are.
 */

#ifndef FASTAE_CELLS
#define FASTAE_CELLS
#define CELLS_ROOM 768 /* lines, of 64 bytes, for the sources of a line of cells and what is made of them */
#define FEW_STEPS 256  /* of a sum, whose weights are laid out at once */
#define FEW_IMAGES 2   /* that meet a weight while it is in a register */
#define FEW_LINES 2    /* of outputs */
#define NOT_INLINE static __attribute__((noinline)) /* their rooms are on the stack, which others do not need */

/* One axis in cells: output places of each, how many there are, where a cell's source begins, counted from that of its
 * first place without an offset, and how long it is. */
typedef struct {
    Py_ssize_t places, count, from, size;
} Cut;

/* Both axes; `rounds` lines are made one after the other, each with so many cells of every image. */
typedef struct {
    Cut h, w;
    Py_ssize_t rounds, line;
} Cells;

/* Where a cell begins in the output and in the source, in places. */
typedef struct {
    Py_ssize_t top, left, source_top, source_left;
} Cell;

/* An axis of `size` windows of `pool` places in about so many cells, which begin where its phases do. */
static inline Cut cut_axis(const Axis *axis, Py_ssize_t size, Py_ssize_t pool, Py_ssize_t cells)
{
    const Py_ssize_t reach = (axis->kernel - 1) * axis->dilation;
    Cut cut = {ceil_div(ceil_div(size, cells), axis->up) * axis->up, 0, 0, 0};
    cut.count = ceil_div(size, cut.places);
    cut.from = ceil_div(axis->offset + least(reach, 0), axis->up);
    cut.size = -ceil_div(-((cut.places * pool - 1) * axis->down + axis->offset + most(reach, 0)), axis->up) - cut.from + 1;
    return cut;
}

/* Whether there may be room for it; strides can be so large that their squares overflow. */
static inline int fits(const Cut *cut) { return cut->places <= CELLS_ROOM && cut->size >= 1 && cut->size <= CELLS_ROOM; }

/* The cells that `rows` images are gathered in with the least work; without rounds where a block of images has less. */
static inline Cells cells_of(const Gather *g, Py_ssize_t pool_h, Py_ssize_t pool_w, Py_ssize_t block)
{
    const Py_ssize_t down = most(pool_h, 1), across = most(pool_w, 1), height = g->oh / down, width = g->ow / across;
    /* cycles, roughly: one for a vector of products, one to load it, so many for a line of a source and of what is made,
     * for a tile's row and for a round */
    const Py_ssize_t taps = ceil_div(g->h.kernel * g->w.kernel, g->h.up * g->w.up);
    const Py_ssize_t products = taps * g->channels * (g->outputs + 1);
    Py_ssize_t least_work = products * g->oh * g->ow * 2 / 3;
    Cells best = {{0, 0, 0, 0}, {0, 0, 0, 0}, 0, block / g->rows};
    if (best.line < 2) return best;
    for (Py_ssize_t rows = 1; rows < 2 * height; rows *= 2)
        for (Py_ssize_t columns = 1; columns < 2 * width; columns *= 2) {
            Cells cells = {cut_axis(&g->h, height, down, rows), cut_axis(&g->w, width, across, columns), 0, best.line};
            if (!fits(&cells.h) || !fits(&cells.w)) continue;
            const Py_ssize_t places = cells.h.places * cells.w.places, source = g->channels * cells.h.size * cells.w.size;
            const Py_ssize_t each = products * places * down * across + 32 * source + 32 * g->outputs * places +
                                    100 * ceil_div(g->outputs, GATHER_ROWS) * cells.h.places + 2000;
            cells.rounds = ceil_div(cells.h.count * cells.w.count, cells.line);
            const Py_ssize_t work = cells.rounds * each;
            if (source + GATHER_ROWS * places > CELLS_ROOM || work >= least_work) continue;
            best = cells;
            least_work = work;
        }
    return best;
}

static inline Cell cell_at(const Gather *g, const Cells *cells, Py_ssize_t pool_h, Py_ssize_t pool_w, Py_ssize_t at)
{
    Cell cell = {at / cells->w.count * cells->h.places, at % cells->w.count * cells->w.places, 0, 0};
    cell.source_top = cell.top * most(pool_h, 1) * g->h.down / g->h.up + cells->h.from;
    cell.source_left = cell.left * most(pool_w, 1) * g->w.down / g->w.up + cells->w.from;
    return cell;
}

/* A cell's axis, with nothing beyond its edges. */
static inline Axis axis_of_cell(const Axis *axis, const Cut *cut)
{
    Axis small = *axis;
    small.offset -= cut->from * axis->up;
    small.size = cut->size;
    return small;
}

/* Whether a gather has one place, which sees all of its source. */
static inline int sees_all(const Axis *axis, Py_ssize_t places)
{
    return places == 1 && axis->up == 1 && axis->offset == 0 && axis->size == axis->kernel &&
           (axis->kernel == 1 || axis->dilation == 1);
}

/* Whether such a one is done faster with outputs in the lanes. Each step of a tile of them waits some 5 cycles for the
 * images that a weight meets, and lays out weights that do not lie side by side; a block of images takes one an output. */
static inline int few_pay(const Gather *g, Py_ssize_t block)
{
    const Py_ssize_t tiles = ceil_div(g->outputs, FEW_LINES * block), turns = ceil_div(g->rows, FEW_IMAGES);
    const Py_ssize_t steps = g->channels * g->h.kernel * g->w.kernel;
    const Py_ssize_t work = tiles * (steps * (5 * turns + (g->w_out == 1 ? 1 : 15)) + 200 + 100 * g->rows);
    return 4 * g->rows <= block && work < g->outputs * (steps + 4);
}
#endif

/* The sources of `count` cells of every image side by side; x is the first channel. */
STATIC void F(lay_cells)(const Gather *g, const Cells *cells, const Cell *cell, Py_ssize_t count, const REAL *x, REAL *to)
{
    const Py_ssize_t size = cells->h.size * cells->w.size * BLOCK, plane = g->h.size * g->w.size * BLOCK;
    for (Py_ssize_t c = 0; c < g->channels; c++, to += size, x += plane) {
        memset(to, 0, size * sizeof(REAL));
        for (Py_ssize_t l = 0; l < count; l++) {
            const Py_ssize_t top = cell[l].source_top, left = cell[l].source_left;
            const Py_ssize_t begin = most(-left, 0), end = least(cells->w.size, g->w.size - left);
            for (Py_ssize_t i = most(-top, 0); i < least(cells->h.size, g->h.size - top); i++)
                for (Py_ssize_t n = 0; n < g->rows; n++) {
                    const REAL *from = x + ((top + i) * g->w.size + left) * BLOCK + n;
                    REAL *row = to + i * cells->w.size * BLOCK + l * g->rows + n;
                    for (Py_ssize_t j = begin; j < end; j++) row[j * BLOCK] = from[j * BLOCK];
                }
        }
    }
}

/* What was made of those cells, where it belongs; y is the first of `channels` outputs. */
STATIC void F(put_cells)(const Gather *g, const Cells *cells, const Cell *cell, Py_ssize_t count, const REAL *made,
                         Py_ssize_t channels, Py_ssize_t height, Py_ssize_t width, REAL *y)
{
    for (Py_ssize_t r = 0; r < channels; r++, made += cells->h.places * cells->w.places * BLOCK, y += height * width * BLOCK)
        for (Py_ssize_t l = 0; l < count; l++) {
            const Py_ssize_t columns = least(cells->w.places, width - cell[l].left);
            for (Py_ssize_t i = 0; i < least(cells->h.places, height - cell[l].top); i++) {
                const REAL *from = made + i * cells->w.places * BLOCK + l * g->rows;
                REAL *row = y + ((cell[l].top + i) * width + cell[l].left) * BLOCK;
                for (Py_ssize_t j = 0; j < columns; j++) {
                    memset(row + j * BLOCK, 0, BLOCK * sizeof(REAL)); /* the images that are not there */
                    row[j * BLOCK] = from[j * BLOCK];
                }
                for (Py_ssize_t n = 1; n < g->rows; n++)
                    for (Py_ssize_t j = 0; j < columns; j++) row[j * BLOCK + n] = from[j * BLOCK + n];
            }
        }
}

/* This part's share of a gather of few images, as `gather` has it. */
NOT_INLINE void F(gather_cells)(const Gather *g, const Cells *cells, const REAL *x, const REAL *w, const REAL *bias,
                                int activation, Py_ssize_t pool_h, Py_ssize_t pool_w, REAL *y, Py_ssize_t part,
                                Py_ssize_t parts)
{
    REAL room[CELLS_ROOM * BLOCK];
    Cell cell[BLOCK];
    Gather small = *g;
    small.h = axis_of_cell(&g->h, &cells->h);
    small.w = axis_of_cell(&g->w, &cells->w);
    REAL *made = room + g->channels * small.h.size * small.w.size * BLOCK;
    const Py_ssize_t height = g->oh / most(pool_h, 1), width = g->ow / most(pool_w, 1);
    const Py_ssize_t row = cells->w.places * BLOCK, plane = cells->h.places * row, all = cells->h.count * cells->w.count;
    const Py_ssize_t tiles = (g->outputs + GATHER_ROWS - 1) / GATHER_ROWS, units = cells->rounds * g->groups * tiles;
    const Py_ssize_t begin = piece(units, part, parts), stop = piece(units, part + 1, parts);
    for (Py_ssize_t i = begin; i < stop; i++) {
        const Py_ssize_t at = i / tiles / g->groups * cells->line, count = least(cells->line, all - at);
        const Py_ssize_t group = i / tiles % g->groups, tile = i % tiles;
        const Py_ssize_t first = piece(g->outputs, tile, tiles), channels = piece(g->outputs, tile + 1, tiles) - first;
        const Py_ssize_t output = group * g->outputs + first;
        const REAL *weight = w + group * g->w_group + first * g->w_out, *from = bias ? bias + output : 0;
        if (i == begin || tile == 0) {
            for (Py_ssize_t l = 0; l < count; l++) cell[l] = cell_at(g, cells, pool_h, pool_w, at + l);
            F(lay_cells)(g, cells, cell, count, x + group * g->channels * g->h.size * g->w.size * BLOCK, room);
        }
        for (Py_ssize_t p = 0; pool_h && p < cells->h.places; p++)
            F(gather_pool_row)(&small, p, pool_h, pool_w, cells->h.places, cells->w.places, room, weight, from, channels,
                               activation, made + p * row, 0, plane);
        if (!pool_h) {
            F(gather_rows)(&small, 0, cells->h.places, 0, cells->w.places, room, weight, from, activation == RELU, 0,
                           channels, made, plane, row);
            if (activation != LINEAR && activation != RELU)
                F(map_activate)(made, made, 0, 1, channels * plane, activation);
        }
        F(put_cells)(g, cells, cell, count, made, channels, height, width, y + output * height * width * BLOCK);
    }
}

/* -- one place of few images: a product of matrices, in which outputs fill the lanes ---------------------------------- */

/* So many steps of the sums of two lines of outputs; each image has its lane of x. */
INLINE void F(few_steps)(const int images, const REAL *x, const REAL *const *b, Py_ssize_t b_step, Py_ssize_t steps,
                         REAL (*sums)[FEW_LINES * BLOCK])
{
    V acc[FEW_IMAGES][FEW_LINES * BLOCK / LANES];
    UNROLL for (int i = 0; i < images; i++) UNROLL for (int v = 0; v < FEW_LINES * BLOCK / LANES; v++)
        acc[i][v] = F(load)(sums[i] + v * LANES);
    for (Py_ssize_t k = 0; k < steps; k++)
        UNROLL for (int v = 0; v < FEW_LINES * BLOCK / LANES; v++)
        {
            const V w = F(load)(b[v * LANES / BLOCK] + k * b_step + v * LANES % BLOCK);
            UNROLL for (int i = 0; i < images; i++) acc[i][v] += w * F(splat)(x[k * BLOCK + i]);
        }
    UNROLL for (int i = 0; i < images; i++) UNROLL for (int v = 0; v < FEW_LINES * BLOCK / LANES; v++)
        F(store)(sums[i] + v * LANES, acc[i][v] + 0); /* never -0, as those of gather_tile */
}

/* The weights of `outputs` <= BLOCK outputs for so many steps side by side, with zeros for the outputs that are not there. */
STATIC void F(lay_weights)(const REAL *w, Py_ssize_t w_out, Py_ssize_t w_in, Py_ssize_t outputs, Py_ssize_t steps, REAL *to)
{
    if (outputs > 0 && w_out != 1) {
        F(interleave)(w, w_out, outputs, steps, to);
        return;
    }
    memset(to, 0, steps * BLOCK * sizeof(REAL));
    for (Py_ssize_t k = 0; k < steps && outputs > 0; k++) memcpy(to + k * BLOCK, w + k * w_in, outputs * sizeof(REAL));
}

/* This part's share of a gather of one place, of few images. */
NOT_INLINE void F(gather_few)(const Gather *g, const REAL *x, const REAL *w, const REAL *bias, int activation, REAL *y,
                              Py_ssize_t part, Py_ssize_t parts)
{
    enum { WIDTH = FEW_LINES * BLOCK };
    REAL room[FEW_LINES][FEW_STEPS * BLOCK], sums[BLOCK / 4][WIDTH];
    const Py_ssize_t steps = g->channels * g->h.kernel * g->w.kernel, tiles = (g->outputs + WIDTH - 1) / WIDTH;
    for (Py_ssize_t i = piece(g->groups * tiles, part, parts); i < piece(g->groups * tiles, part + 1, parts); i++) {
        const Py_ssize_t group = i / tiles, first = i % tiles * WIDTH, count = least(WIDTH, g->outputs - first);
        const Py_ssize_t output = group * g->outputs + first;
        const REAL *weight = w + group * g->w_group + first * g->w_out;
        const int there = g->w_out == 1 && count == WIDTH; /* whole lines, side by side */
        REAL *to = y + output * BLOCK;
        for (Py_ssize_t n = 0; n < g->rows; n++)
            for (Py_ssize_t r = 0; r < WIDTH; r++) sums[n][r] = bias && r < count ? bias[(output + r) / g->places] : 0;
        for (Py_ssize_t k = 0; k < steps; k += FEW_STEPS) {
            const Py_ssize_t some = least(FEW_STEPS, steps - k), b_step = there ? g->w_in : BLOCK;
            const REAL *from = x + (group * steps + k) * BLOCK, *b[FEW_LINES];
            for (Py_ssize_t l = 0; l < FEW_LINES; l++) {
                const REAL *line = weight + l * BLOCK * g->w_out + k * (g->w_out == 1 ? g->w_in : 1);
                b[l] = there ? line : room[l];
                if (!there) F(lay_weights)(line, g->w_out, g->w_in, least(BLOCK, count - l * BLOCK), some, room[l]);
            }
            Py_ssize_t n = 0;
            for (; n + FEW_IMAGES <= g->rows; n += FEW_IMAGES) F(few_steps)(FEW_IMAGES, from + n, b, b_step, some, sums + n);
            for (; n < g->rows; n++) F(few_steps)(1, from + n, b, b_step, some, sums + n);
        }
        memset(to, 0, count * BLOCK * sizeof(REAL));
        for (Py_ssize_t n = 0; n < g->rows; n++) {
            if (activation != LINEAR) F(map_activate)(sums[n], sums[n], 0, 1, count, activation);
            for (Py_ssize_t r = 0; r < count; r++) to[r * BLOCK + n] = sums[n][r];
        }
    }
}
