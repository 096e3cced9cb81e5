/* A convolution, or the gradient of its input, by the way that suits its shape and the number of images; the bits are the
 * same by all of them. */

/* This part's share of a gather: y, in blocks of rows, is made of x. With `pool_h` > 0 windows of that size are pooled, and
 * `position` may be asked for; else y is multiplied by the derivative of `activation` in `saved` where that is given, and
 * is f(y) of it where not. */
STATIC void F(gather)(const Gather *g, const REAL *x, const REAL *w, const REAL *bias, const REAL *saved, int activation,
                      Py_ssize_t pool_h, Py_ssize_t pool_w, REAL *y, REAL *position, Py_ssize_t part, Py_ssize_t parts)
{
    const int to_one = !pool_h && g->oh == 1 && g->ow == 1;
    const int from_one = g->h.size == 1 && g->w.size == 1 && g->h.kernel == 1 && g->w.kernel == 1;
    if (!pool_h && !saved && sees_all(&g->h, g->oh) && sees_all(&g->w, g->ow) && few_pay(g, BLOCK)) {
        F(gather_few)(g, x, w, bias, activation, y, part, parts);
        return;
    }
    if (to_one && from_one) {
        F(gather_product)(g, x, w, bias, saved, activation, y, part, parts);
        return;
    }
    if (!saved && !position) {
        const Cells cells = cells_of(g, pool_h, pool_w, BLOCK);
        if (cells.rounds && F(are_finite)(w, 0, 1, g->groups * g->w_group)) {
            F(gather_cells)(g, &cells, x, w, bias, activation, pool_h, pool_w, y, part, parts);
            return;
        }
    }
    if (!pool_h && !bias && F(can_scatter)(g, x, w, parts)) {
        F(scatter)(g, x, w, saved, activation, y, part, parts);
        return;
    }
    F(gather_blocks)(g, x, w, bias, saved, activation, pool_h, pool_w, y, position, part, parts);
}
