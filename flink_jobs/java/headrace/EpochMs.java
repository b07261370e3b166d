package headrace;

import org.apache.flink.table.annotation.DataTypeHint;
import org.apache.flink.table.data.TimestampData;
import org.apache.flink.table.functions.ScalarFunction;

/** A record's time in milliseconds since 1970, for which SQL has two EXTRACTs. */
public final class EpochMs extends ScalarFunction {
    public @DataTypeHint("BIGINT NOT NULL") long eval(
            @DataTypeHint(value = "TIMESTAMP_LTZ(3)", bridgedTo = TimestampData.class) TimestampData time) {
        return time.getMillisecond();
    }
}
