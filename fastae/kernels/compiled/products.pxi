# Products of matrices, tile by tile (tiles.h), and the sums and maps that stand beside them in a dense layer.

cdef inline bint by_rows(Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t steps,
                         Py_ssize_t parts) noexcept nogil:
    """Whether a product is shared out by rows: as `by_rows` of its row in the table says (tests compare)."""
    return rows >= ROWS_A_THREAD * parts and (
        columns * steps <= SMALL_WEIGHT or rows * (columns + steps) > columns * steps)


cdef inline Py_ssize_t panel_begin(Py_ssize_t vectors, Py_ssize_t panel, Py_ssize_t panels) noexcept nogil:
    """Vector at which a panel of a product's columns begins: they are even, and the first ones the wider, so
        that panels of a line each are whole lines up to the last."""
    return (vectors * panel + panels - 1) // panels


cdef inline Py_ssize_t next_height(Py_ssize_t each, Py_ssize_t more, Py_ssize_t bands,
                                   Py_ssize_t* rest) noexcept nogil:
    """Rows of the next of `bands` bands of each * bands + more rows, as share has them, without a division;
        `rest` is what the bands before left over."""
    rest[0] += more
    if rest[0] >= bands:
        rest[0] -= bands
        return each + 1
    return each


cdef inline void take_rows(const real** a, real** c, Py_ssize_t c_row, Py_ssize_t* rows,
                           Py_ssize_t* part, Py_ssize_t* parts) noexcept nogil:
    """This thread's rows of a weight c, and columns of a, where there are enough: memory of its own, for a
        core that passes along a row fetches more than its share of it."""
    cdef Py_ssize_t first = share(rows[0], part[0], parts[0])
    if parts[0] > 1 and rows[0] >= ROWS_OF_WEIGHT_A_THREAD * parts[0]:
        a[0] += first
        c[0] += first * c_row
        rows[0] = share(rows[0], part[0] + 1, parts[0]) - first
        part[0], parts[0] = 0, 1


cdef inline bint passes_over_zeros(const real* a, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t size,
                                   Py_ssize_t steps, Py_ssize_t columns) noexcept nogil:
    """Whether a product of a, or of a turned round, is faster without a's zeros."""
    cdef Py_ssize_t vectors = columns * <Py_ssize_t>sizeof(real) // VECTOR_BYTES
    cdef double side_by_side, together, worth, others
    if rows < FEW_ROWS or size > ZERO_WIDEST or vectors < 4:
        return False
    if rows * size * vectors < 512 * VECTOR_BYTES:  # so little that to look takes as long as there is to gain
        return False
    side_by_side = <double>vectors / ((vectors + ZERO_COLUMNS - 1) // ZERO_COLUMNS)
    together = <double>steps / ((steps + ZERO_STEPS - 1) // ZERO_STEPS)
    # a term costs more than in a tile, and each row of a block as much as so many vectors
    if VECTOR_BYTES < 64:
        worth = 0.8 - 50 / (together * side_by_side)
    else:  # two vectors at a time: a term of a few waits for the one before
        worth = (0.8 - 100 / (together * side_by_side)) * side_by_side / ZERO_COLUMNS
    if worth <= 0:
        return False
    if real is float:
        others = share_of_others_f32(a, row, rows, size)
    else:
        others = share_of_others_f64(a, row, rows, size)
    return others <= min(0.625, worth)


cdef inline Py_ssize_t take_columns(const real** b, real** c, Py_ssize_t* columns, Py_ssize_t part,
                                    Py_ssize_t parts) noexcept nogil:
    """This thread's columns of a product, whole vectors of them; gives the first of them."""
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t vectors = (columns[0] + lanes - 1) // lanes, first = share(vectors, part, parts) * lanes
    columns[0] = min(share(vectors, part + 1, parts) * lanes, columns[0]) - first
    b[0] += first
    c[0] += first
    return first


cdef inline void product_without_zeros(const real* a, Py_ssize_t a_row, const real* b, Py_ssize_t b_step,
                                       Py_ssize_t steps, const real* bias, real* c, Py_ssize_t c_row,
                                       Py_ssize_t rows, Py_ssize_t columns, int activation) noexcept nogil:
    if real is float:
        zero_product_f32(a, a_row, b, b_step, steps, bias, c, c_row, rows, columns, activation)
    else:
        zero_product_f64(a, a_row, b, b_step, steps, bias, c, c_row, rows, columns, activation)


cdef inline void gradient_without_zeros(const real* a, Py_ssize_t a_step, const real* b, Py_ssize_t b_step,
                                        Py_ssize_t steps, real* c, Py_ssize_t c_row, Py_ssize_t rows,
                                        Py_ssize_t columns, const void* update, Py_ssize_t part,
                                        Py_ssize_t parts) noexcept nogil:
    take_columns(&b, &c, &columns, part, parts)
    if real is float:
        zero_update_f32(a, a_step, b, b_step, steps, c, c_row, rows, columns, <const Update_f32*>update)
    else:
        zero_update_f64(a, a_step, b, b_step, steps, c, c_row, rows, columns, <const Update_f64*>update)


cdef void outer_product(const real* a, Py_ssize_t a_row, Py_ssize_t a_step,
                        const real* b, Py_ssize_t b_step, Py_ssize_t steps, const real* bias,
                        real* c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns,
                        int activation, const real* after, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """c = f(a b + bias): even tiles, panel by panel, of a large b some steps at a time, so that it is near.
        One of a_row and a_step is 1. `after`: the panel of b that is read next, or NULL."""
    cdef Py_ssize_t panel, first, last, band, blocks, block, step, count, i, j, next_j, height, rest, size
    if a_row == 1:
        take_rows(&a, &c, c_row, &rows, &part, &parts)
        if steps <= ZERO_MOST and passes_over_zeros(a, a_step, steps, rows, steps, columns):
            gradient_without_zeros(a, a_step, b, b_step, steps, c, c_row, rows, columns, NULL, part, parts)
            return
    elif passes_over_zeros(a, a_row, rows, steps, steps, columns):
        first = take_columns(&b, &c, &columns, part, parts)
        product_without_zeros(a, a_row, b, b_step, steps, bias + first if bias != NULL else NULL, c, c_row,
                              rows, columns, activation)
        return
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t vectors = (columns + lanes - 1) // lanes
    cdef Py_ssize_t panels = (vectors + TILE_COLUMNS - 1) // TILE_COLUMNS
    cdef Py_ssize_t high = tile_rows(<int>((vectors + panels - 1) // panels))
    cdef Py_ssize_t bands = (rows + high - 1) // high
    cdef Py_ssize_t each = rows // bands if bands > 0 else 0, more = rows - each * bands
    cdef Py_ssize_t tile = share(panels * bands, part, parts), end = share(panels * bands, part + 1, parts)
    cdef Py_ssize_t ask, done
    # of several tiles at a time: a formula takes longer than the vectors of one give a core to do
    cdef bint at_once = parts == 1 and rows * columns * <Py_ssize_t>sizeof(real) <= MADE
    cdef bint often, deferred = activation != LINEAR and not at_once
    cdef const real* start
    cdef const real* next_block
    while tile < end:
        panel = tile // bands
        first = tile - panel * bands
        last = min(bands, first + end - tile)
        tile += last - first
        j = panel_begin(vectors, panel, panels) * lanes
        next_j = panel_begin(vectors, panel + 1, panels) * lanes
        size = min(next_j, columns) - j
        often = last - first > FEW_BANDS and steps * b_step * <Py_ssize_t>sizeof(real) > NEAR
        blocks = 1
        if often:
            blocks += steps * ((size * <Py_ssize_t>sizeof(real) + LINE - 1) // LINE * LINE) // BLOCK
        for block in range(blocks):
            step = share(steps, block, blocks)
            count = share(steps, block + 1, blocks) - step
            start = bias + j if bias != NULL else NULL
            next_block = NULL
            if often:
                if block + 1 < blocks:
                    next_block = b + (step + count) * b_step + j
                elif tile < end:
                    next_block = b + next_j
                else:
                    next_block = after
            i = done = share(rows, first, bands)
            rest = rows * first % bands
            for band in range(first, last):
                height = next_height(each, more, bands, &rest)
                if next_block != NULL:  # each band asks for some of its rows
                    ask = share(count, band - first, last - first)
                    ask_for_rows(<const char*>(next_block + ask * b_step), b_step * sizeof(real),
                                 share(count, band - first + 1, last - first) - ask, size * sizeof(real))
                if block > 0:  # the sums so far
                    start = c + i * c_row + j
                if real is float:
                    outer_f32(a + i * a_row + step * a_step, a_row, a_step, b + step * b_step + j, b_step,
                              count, start, c + i * c_row + j, c_row, height, size, NULL)
                else:
                    outer_f64(a + i * a_row + step * a_step, a_row, a_step, b + step * b_step + j, b_step,
                              count, start, c + i * c_row + j, c_row, height, size, NULL)
                i += height
                if deferred and block == blocks - 1 and (
                        band == last - 1 or (i - done) * size * <Py_ssize_t>sizeof(real) >= MADE // 2):
                    activate(c + done * c_row + j, c + done * c_row + j, c_row, i - done, size, activation)
                    done = i
    if activation != LINEAR and at_once:
        activate(c, c, c_row, rows, columns, activation)


cdef void update_product(const real* a, Py_ssize_t a_step, const real* b, Py_ssize_t b_step,
                         Py_ssize_t steps, real* c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns,
                         void* update, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """c updated by the gradient a^T b, band by band: along its rows a core fetches ahead what is in a far
        cache, as large weights with their moments are. Of b so many columns at a time as are near."""
    cdef Py_ssize_t first_panel = 0, first_band = 0, end_panel, end_band
    take_rows(&a, &c, c_row, &rows, &part, &parts)
    if steps <= ZERO_MOST and passes_over_zeros(a, a_step, steps, rows, steps, columns):
        gradient_without_zeros(a, a_step, b, b_step, steps, c, c_row, rows, columns, update, part, parts)
        return
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t vectors = (columns + lanes - 1) // lanes
    cdef bint far = rows * columns * <Py_ssize_t>sizeof(real) > NEAR
    # of a far one high tiles: they pass over b the less often
    cdef Py_ssize_t widest = min(TILE_COLUMNS, 3) if far else TILE_COLUMNS
    cdef Py_ssize_t panels = (vectors + widest - 1) // widest
    cdef Py_ssize_t high = tile_rows(<int>((vectors + panels - 1) // panels))
    cdef Py_ssize_t bands = (rows + high - 1) // high
    cdef Py_ssize_t each = rows // bands if bands > 0 else 0, more = rows - each * bands
    end_panel, end_band = panels, bands
    if panels > bands:
        first_panel, end_panel = share(panels, part, parts), share(panels, part + 1, parts)
    else:
        first_band, end_band = share(bands, part, parts), share(bands, part + 1, parts)
    cdef Py_ssize_t group = max(1, GROUP // (steps * widest * VECTOR_BYTES))
    cdef Py_ssize_t band, panel, end, i, j, first_j, next_j, height, rest, ahead
    while first_panel < end_panel:
        end = min(first_panel + group, end_panel)
        first_j = panel_begin(vectors, first_panel, panels) * lanes
        i = share(rows, first_band, bands)
        rest = rows * first_band % bands
        for band in range(first_band, end_band):
            height = next_height(each, more, bands, &rest)
            next_j = first_j
            for panel in range(first_panel, end):
                j = next_j
                next_j = panel_begin(vectors, panel + 1, panels) * lanes
                ahead = 0
                if far and panel + 1 < end:
                    ahead = next_j - j
                elif far and band + 1 < end_band:
                    ahead = height * c_row + first_j - j
                if real is float:
                    (<Update_f32*>update).ahead = ahead
                    outer_f32(a + i, 1, a_step, b + j, b_step, steps, NULL, c + i * c_row + j, c_row,
                              height, min(next_j, columns) - j, <const Update_f32*>update)
                else:
                    (<Update_f64*>update).ahead = ahead
                    outer_f64(a + i, 1, a_step, b + j, b_step, steps, NULL, c + i * c_row + j, c_row,
                              height, min(next_j, columns) - j, <const Update_f64*>update)
            i += height
        first_panel = end


cdef void dot_product(const real* a, Py_ssize_t a_row, const real* b, Py_ssize_t b_row, Py_ssize_t m,
                      const real* saved, real* c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns,
                      int activation, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """c = (a b^T) f'(saved), the sums along the rows of both."""
    if parts > 1 and by_rows(rows, columns, m, parts):
        dot_product(a + share(rows, part, parts) * a_row, a_row, b, b_row, m,
                    saved + share(rows, part, parts) * c_row if saved != NULL else NULL,
                    c + share(rows, part, parts) * c_row, c_row,
                    share(rows, part + 1, parts) - share(rows, part, parts), columns, activation, 0, 1)
        return
    cdef Py_ssize_t first = share((columns + 3) // 4, part, parts) * 4
    cdef Py_ssize_t end = min(share((columns + 3) // 4, part + 1, parts) * 4, columns)
    cdef Py_ssize_t i, j, band, panel
    for panel in range(first, end, 8):  # two tiles while the rows of a are in the first cache
        for band in range((rows + DOT_ROWS - 1) // DOT_ROWS):
            i = band * DOT_ROWS
            for j in range(panel, min(panel + 8, end), 4):
                if real is float:
                    dot_f32(a + i * a_row, a_row, b + j * b_row, b_row, m, c + i * c_row + j, c_row,
                            min(DOT_ROWS, rows - i), min(4, end - j))
                else:
                    dot_f64(a + i * a_row, a_row, b + j * b_row, b_row, m, c + i * c_row + j, c_row,
                            min(DOT_ROWS, rows - i), min(4, end - j))
    if activation != LINEAR and end > first:
        for i in range(rows):
            slope(c + i * c_row + first, saved + i * c_row + first, c + i * c_row + first,
                  end - first, activation)


cdef inline void activate(const real* x, real* y, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t size,
                          int activation) noexcept nogil:
    if real is float:
        map_activate_f32(x, y, row, rows, size, activation)
    else:
        map_activate_f64(x, y, row, rows, size, activation)


cdef inline void slope(const real* dy, const real* y, real* dx, Py_ssize_t size,
                       int activation) noexcept nogil:
    if real is float:
        map_slope_f32(dy, y, dx, size, activation)
    else:
        map_slope_f64(dy, y, dx, size, activation)


cdef void column_sums(const real* a, Py_ssize_t a_row, Py_ssize_t rows, Py_ssize_t columns, real* sums,
                      const void* update, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """Sum of the rows of a, stored in sums or, with `update`, the gradient by which sums is updated."""
    cdef real block[64]
    cdef real* made
    cdef Py_ssize_t panel, j, size
    for panel in range(share((columns + 63) // 64, part, parts), share((columns + 63) // 64, part + 1,
                                                                       parts)):
        j = panel * 64
        size = min(64, columns - j)
        made = sums + j
        if update != NULL:
            made = block
        if real is float:
            column_sums_f32(a + j, a_row, rows, made, size)
        else:
            column_sums_f64(a + j, a_row, rows, made, size)
        if update != NULL:
            apply_update(update, block, sums + j, size)


cdef inline void apply_update(const void* update, const real* g, real* w, Py_ssize_t size) noexcept nogil:
    if real is float:
        update_map_f32(<const Update_f32*>update, g, w, size)
    else:
        update_map_f64(<const Update_f64*>update, g, w, size)
