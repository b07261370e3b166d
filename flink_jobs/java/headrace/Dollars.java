package headrace;

import java.math.BigDecimal;
import org.apache.flink.table.annotation.DataTypeHint;
import org.apache.flink.table.functions.ScalarFunction;

/** Cents as dollars with two decimals: of 64 bits every value fits. */
public final class Dollars extends ScalarFunction {
    public @DataTypeHint("DECIMAL(19, 2)") BigDecimal eval(Long cents) {
        return cents == null ? null : BigDecimal.valueOf(cents, 2);
    }
}
